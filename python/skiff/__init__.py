"""Skiff: agentic RL of coding agents on Slurm, in a few SIF files.

The rooms (sub-packages) and the one direction of their imports are described in
docs/architecture.md and enforced by `make lint`. The version is the file VERSION, read by the
packaging; at run time: `importlib.metadata.version("skiff")`.
"""
