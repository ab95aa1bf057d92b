"""One trajectory from task to reward: sandbox, agent, patch, grade, all within one deadline.

The deadline is agent.trajectory_seconds. Its last part is kept for the grade, so an agent that is
too slow (stop = budget) is still graded for what it did. Failures that are not the agent's end as
stop = infra with reward None. Not covered: retries; a masked trajectory is not repeated.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from skiff.agents import mini
from skiff.agents.episode import Episode, Stop, timed
from skiff.agents.tokens import ContextFullError, Limits, TokenBuffer
from skiff.agents.trajectory import Policy, StopReason, Trajectory
from skiff.config import Config
from skiff.errors import SkiffError
from skiff.sandbox.client import RuntimeClient, SandboxSpec
from skiff.tasks.lifecycle import extract_patch, grade, prepare
from skiff.tasks.task import Task

Agent = Callable[[Episode], Awaitable[Stop]]
PHASES = ("start", "generate", "tools", "grade")  # the keys of Trajectory.seconds


async def run_trajectory(
    task: Task,
    *,
    config: Config,
    policy: Policy,
    tokenizer: Any,
    model_type: str,
    client: RuntimeClient,
    sampling: dict[str, Any],
    request_id: str,
) -> Trajectory:
    """Run the agent config.agent.name on `task` and grade its patch.

    `sampling` reaches the policy unchanged but for `max_tokens`, which is set per call. Never
    raises for a failure of task, sandbox or engine: the trajectory then has stop = INFRA, reward
    None and the sentence in stop_detail. All that was started has ended when this returns.
    """
    trajectory = Trajectory(task_id=task.id, seconds=dict.fromkeys(PHASES, 0.0))
    agent = _agent(config.agent.name)
    buffer = TokenBuffer.create(tokenizer, model_type, Limits.from_config(config))
    spec = SandboxSpec.from_config(config, image=task.image, workdir=task.workdir, env=task.env)
    now = asyncio.get_running_loop().time
    begun = now()
    end = begun + config.agent.trajectory_seconds
    deadline = asyncio.timeout_at(end)
    try:
        async with deadline:
            async with AsyncExitStack() as stack:
                with timed(trajectory, "start"):
                    sandbox = await stack.enter_async_context(client.sandbox(spec))
                    await prepare(sandbox, task, timeout=config.runtime.start_seconds)
                episode = Episode(
                    task=task,
                    agent=config.agent,
                    policy=policy,
                    tokenizer=tokenizer,
                    sampling=sampling,
                    request_id=request_id,
                    sandbox=sandbox,
                    buffer=buffer,
                    trajectory=trajectory,
                    deadline=begun + _agent_seconds(task, config),
                )
                stop = await _act(agent, episode)
                trajectory.stop, trajectory.stop_detail = stop.reason, stop.detail
                trajectory.patch = await extract_patch(
                    sandbox, task, timeout=config.agent.command_seconds
                )
            with timed(trajectory, "grade"):
                seconds = min(_grade_seconds(task, config), end - now())
                result = await grade(client, spec, task, trajectory.patch, timeout=seconds)
            trajectory.reward, trajectory.grade_output = result.reward, result.output
    except (SkiffError, OSError) as error:  # a passed deadline is a TimeoutError, thus an OSError
        trajectory.stop = StopReason.INFRA
        trajectory.stop_detail = (
            f"the {config.agent.trajectory_seconds:g} s of agent.trajectory_seconds passed while"
            " Skiff was starting, saving or grading"
            if deadline.expired()
            else str(error) or type(error).__name__
        )
    trajectory.prompt_ids = buffer.prompt_ids
    trajectory.response_ids = buffer.response_ids
    trajectory.response_mask = buffer.response_mask
    trajectory.log_probs = buffer.log_probs
    return trajectory


async def _act(agent: Agent, episode: Episode) -> Stop:
    """Run the agent until it ends, the context is full or its time is used up."""
    limit = asyncio.timeout_at(episode.deadline)
    try:
        async with limit:
            return await agent(episode)
    except ContextFullError as full:
        return Stop(StopReason.CONTEXT, str(full))
    except TimeoutError:
        if not limit.expired():
            raise
        return Stop(StopReason.BUDGET, "the agent's share of agent.trajectory_seconds is used up")


def _agent(name: str) -> Agent:
    if name == "openhands":
        from skiff.agents import openhands  # its SDK takes seconds to import

        return openhands.run
    return mini.run


def _agent_seconds(task: Task, config: Config) -> float:
    """The deadline less what the grade may need (a sandbox start and the tests), at least half."""
    whole = config.agent.trajectory_seconds
    return max(whole / 2, whole - config.runtime.start_seconds - _grade_seconds(task, config))


def _grade_seconds(task: Task, config: Config) -> float:
    return task.grade_seconds or config.agent.grade_seconds
