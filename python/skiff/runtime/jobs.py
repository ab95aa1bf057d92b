"""Commands that run while their client polls: the agent-server's bash events.

A job yields one BashOutput event, when its command has ended. What is remembered is bounded in
number and in bytes; the oldest ended jobs go first. A command that this server does not know (it
was started again meanwhile, or the job was dropped) is answered as a failure of the machinery: the
stock client would otherwise poll until its timeout and take that for the command's.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime

from skiff.runtime.backend import CommandOutput
from skiff.runtime.sandbox_messages import BashCommand, BashOutput

JOBS_KEPT = 1000
KEPT_BYTES = 8 << 20  # of commands and outputs; one output may pass it alone
UNENDED = 64  # jobs that may wait or run
LINGER_SECONDS = 2.0
LOST = "the runtime server was restarted while this command ran, or has dropped its output since"


class TooManyJobsError(Exception):
    """UNENDED jobs wait already."""


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass(eq=False)
class Job:
    """One command. `timeout` in seconds."""

    command: str
    cwd: str
    timeout: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    timestamp: str = field(default_factory=_now)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    output: BashOutput | None = None

    def finish(self, done: CommandOutput) -> BashOutput:
        """Keep how the command ended. The protocol knows no other mark of a timeout than -1."""
        stderr = done.stderr.decode(errors="replace")
        if done.timed_out:
            stderr += f"\nCommand timed out after {self.timeout:g} seconds"
        self.output = BashOutput(
            id=str(uuid.uuid4()),
            timestamp=_now(),
            command_id=self.id,
            exit_code=-1 if done.exit_code is None else done.exit_code,
            stdout=done.stdout.decode(errors="replace") or None,
            stderr=stderr or None,
            infra_error=None,
        )
        self.ended.set()
        return self.output

    def fail(self, reason: str) -> BashOutput:
        """Keep that the machinery failed."""
        self.output = _infra_output(self.id, reason)
        self.ended.set()
        return self.output

    async def linger(self) -> None:
        """Wait for the end, but not for long.

        The stock client sleeps 0.1 s after each search that found no end; an answer that waits a
        little spares it that. It waits for an answer no longer than for the command.
        """
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), min(LINGER_SECONDS, self.timeout / 2))

    def command_event(self) -> BashCommand:
        """The command, as text that can be sent: a byte that is not UTF-8 becomes `?`."""
        return BashCommand(
            id=self.id,
            timestamp=self.timestamp,
            command=self.command.encode(errors="replace").decode(),
            cwd=self.cwd,
            timeout=int(self.timeout),
        )

    def size(self) -> int:
        """Bytes of memory, nearly."""
        texts = [self.command]
        if self.output is not None:
            texts += [self.output.stdout or "", self.output.stderr or ""]
        return sum(map(sys.getsizeof, texts))


class Jobs:
    """The jobs of one sandbox, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        """Remember a job. Raises TooManyJobsError."""
        if sum(known.output is None for known in self._jobs.values()) >= UNENDED:
            raise TooManyJobsError(f"{UNENDED} commands of this sandbox wait or run already")
        self._jobs[job.id] = job
        self.trim()

    def trim(self) -> None:
        """Drop the oldest ended jobs beyond the bounds, but never the last that has ended: its
        client is still to ask. To be called when a job has ended."""
        ended = [job for job in self._jobs.values() if job.output is not None]
        size = sum(job.size() for job in self._jobs.values())
        for job in ended[:-1]:
            if len(self._jobs) <= JOBS_KEPT and size <= KEPT_BYTES:
                return
            del self._jobs[job.id]
            size -= job.size()

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def events(
        self, *, kind: str | None, command_id: str | None, after_order: int | None
    ) -> list[BashCommand | BashOutput]:
        """The matching events, oldest first. `after_order` holds for BashOutput only."""
        least = -1 if after_order is None else after_order
        return [
            event
            for event in self._events(command_id)
            if kind in (None, event.kind)
            and (isinstance(event, BashCommand) or event.order > least)
        ]

    def _events(self, command_id: str | None) -> Iterator[BashCommand | BashOutput]:
        if command_id is not None and command_id not in self._jobs:
            yield _infra_output(command_id, LOST)
            return
        jobs = self._jobs.values() if command_id is None else [self._jobs[command_id]]
        for job in jobs:
            yield job.command_event()
            if job.output is not None:
                yield job.output


def _infra_output(command_id: str, reason: str) -> BashOutput:
    return BashOutput(
        id=str(uuid.uuid4()),
        timestamp=_now(),
        command_id=command_id,
        exit_code=-1,
        stdout=None,
        stderr=f"infrastructure error: {reason}",
        infra_error=reason,
    )
