"""What an agent works with while it runs: the policy, the sandbox and the record of both.

An agent is `async (Episode) -> Stop`. Everything here runs on one event loop; an agent with its own
threads hands its calls over to that loop. Not covered: start and grading, see run.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from skiff.agents.tokens import Message, TokenBuffer
from skiff.agents.trajectory import Generation, Policy, StopReason, Trajectory, Turn
from skiff.config.schema import Agent as AgentConfig
from skiff.errors import InfraError, SkiffError
from skiff.sandbox.client import CommandResult, Sandbox
from skiff.tasks.task import Task


@dataclass(frozen=True)
class Stop:
    """Why the agent ended, and a sentence where the reason alone does not say it."""

    reason: StopReason
    detail: str = ""


@dataclass
class Episode:
    """One running trajectory. `deadline` is the event loop's time at which the agent must end."""

    task: Task
    agent: AgentConfig
    policy: Policy
    tokenizer: Any
    sampling: Mapping[str, Any]
    request_id: str
    sandbox: Sandbox
    buffer: TokenBuffer
    trajectory: Trajectory
    deadline: float

    @property
    def turn(self) -> Turn:
        """The turn opened by the last `generate`."""
        return self.trajectory.turns[-1]

    def begin(self, messages: Sequence[Message]) -> None:
        """Set the first prompt. Raises TaskError when it is too long."""
        self.buffer.begin(messages, task_id=self.task.id)

    def observe(self, text: str) -> None:
        """Answer the last turn as the user. Raises ContextFullError."""
        self.buffer.observe([{"role": "user", "content": text}])

    async def generate(self) -> str:
        """One answer of the policy, decoded without special tokens; opens a turn.

        Raises ContextFullError when no token fits, InfraError when the engine failed in any way.
        """
        sampling = {**self.sampling, "max_tokens": self.buffer.room()}
        with timed(self.trajectory, "generate") as spent:
            generation = await self._ask(sampling)
        text: str = self.tokenizer.decode(generation.token_ids, skip_special_tokens=True)
        self.buffer.generated(generation, text)
        self.trajectory.preempted += generation.preempted
        self.trajectory.turns.append(
            Turn(text=text, tokens=len(generation.token_ids), seconds=spent())
        )
        return text

    @contextmanager
    def tool(self) -> Iterator[Sandbox]:
        """Lend the sandbox for one action of the last turn; its time counts as `tools`."""
        with timed(self.trajectory, "tools") as spent:
            yield self.sandbox
        self.turn.seconds += spent()

    async def run(self, command: str) -> CommandResult:
        """Run a shell command of the agent in the task's folder, never beyond the deadline.

        Raises InfraError when the sandbox is gone.
        """
        limit = self.task.command_seconds or self.agent.command_seconds
        left = max(1.0, self.deadline - asyncio.get_running_loop().time())
        with self.tool() as sandbox:
            return await sandbox.run(command, timeout=min(limit, left), cwd=self.task.workdir)

    async def _ask(self, sampling: dict[str, Any]) -> Generation:
        try:
            return await self.policy.generate(self.request_id, self.buffer.engine_prompt, sampling)
        except SkiffError:
            raise
        except Exception as error:  # whatever an engine raises, it is not the agent's failure
            raise InfraError(
                f"the engine failed: {type(error).__name__}: {error}", where=self.task.id
            ) from error


@contextmanager
def timed(trajectory: Trajectory, phase: str) -> Iterator[Callable[[], float]]:
    """Add the seconds of the block to `trajectory.seconds[phase]`, however the block ends.

    Yields a clock: the seconds since the block was entered.
    """
    begun = time.monotonic()
    try:
        yield lambda: time.monotonic() - begun
    finally:
        trajectory.seconds[phase] += time.monotonic() - begun
