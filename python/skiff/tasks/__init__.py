"""Datasets -> `Task`: what the sandbox holds, what the agent is told, how its patch is graded."""
