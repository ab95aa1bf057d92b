"""The scripted solver through the real agent loop, without a model: does a task do what it says?

For tasks with a scripted solution. Not covered: training; see trainer.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from skiff.agents.run import run_trajectory
from skiff.agents.scripted import ScriptedPolicy, solution_answers
from skiff.agents.trajectory import Trajectory
from skiff.config import Config
from skiff.sandbox.client import RuntimeClient
from skiff.tasks.task import Task
from skiff.train.tiny import make_tokenizer

ROOM = 100_000  # tokens; the solver's tokenizer knows bytes only


async def solve(
    tasks: Sequence[Task], client: RuntimeClient, config: Config, *, done: Callable[[], None]
) -> list[Trajectory]:
    """One trajectory a task by the agent of the config; `done` is called after each."""
    roomy = with_room(config, ROOM)
    tokenizer = make_tokenizer()
    slots = asyncio.Semaphore(config.rollout.max_concurrent)

    async def one(task: Task) -> Trajectory:
        policy = ScriptedPolicy(tokenizer, solution_answers(task, config.agent.name))
        async with slots:
            trajectory = await run_trajectory(
                task,
                config=roomy,
                policy=policy,
                tokenizer=tokenizer,
                model_type="qwen3",
                client=client,
                sampling={},
                request_id=task.id,
            )
        done()
        return trajectory

    return await asyncio.gather(*(one(task) for task in tasks))


def with_room(config: Config, tokens: int) -> Config:
    """The profile with room for texts in bytes, which take several times the tokens."""
    rollout = config.rollout.model_copy(update={"prompt_tokens": tokens, "response_tokens": tokens})
    return config.model_copy(
        update={
            "rollout": rollout,
            "model": config.model.model_copy(update={"context_tokens": 2 * tokens}),
            "agent": config.agent.model_copy(update={"turn_tokens": tokens}),
        }
    )
