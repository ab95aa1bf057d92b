"""Commands that run while their client polls: the agent-server's bash events.

A job yields one BashOutput event, when its command has ended. Only the last JOBS_KEPT are
remembered.
"""

from __future__ import annotations

import asyncio
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from skiff.runtime.backend import CommandOutput

JOBS_KEPT = 1000


def _now() -> str:
    return datetime.now(UTC).isoformat()


@dataclass
class Job:
    """One command."""

    command: str
    cwd: str
    timeout: float
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    timestamp: str = field(default_factory=_now)
    stop: asyncio.Event = field(default_factory=asyncio.Event)
    output: dict[str, Any] | None = None

    def finish(self, done: CommandOutput) -> None:
        """Keep how the command ended. The protocol knows no other mark of a timeout than -1."""
        stderr = done.stderr.decode(errors="replace")
        if done.timed_out:
            stderr += f"\nCommand timed out after {self.timeout:g} seconds"
        self._finish(-1 if done.exit_code is None else done.exit_code, done.stdout, stderr, None)

    def fail(self, reason: str) -> None:
        """Keep that the machinery failed."""
        self._finish(-1, b"", f"infrastructure error: {reason}", reason)

    def command_event(self) -> dict[str, Any]:
        """The BashCommand event."""
        return {
            "id": self.id,
            "timestamp": self.timestamp,
            "command": self.command,
            "cwd": self.cwd,
            "timeout": int(self.timeout),
            "kind": "BashCommand",
        }

    def _finish(self, exit_code: int, stdout: bytes, stderr: str, infra_error: str | None) -> None:
        self.output = {
            "id": str(uuid.uuid4()),
            "timestamp": _now(),
            "command_id": self.id,
            "order": 0,
            "exit_code": exit_code,
            "stdout": stdout.decode(errors="replace") or None,
            "stderr": stderr or None,
            "infra_error": infra_error,
            "kind": "BashOutput",
        }


class Jobs:
    """The jobs of one sandbox, oldest first."""

    def __init__(self) -> None:
        self._jobs: dict[str, Job] = {}

    def add(self, job: Job) -> None:
        self._jobs[job.id] = job
        while len(self._jobs) > JOBS_KEPT:
            del self._jobs[next(iter(self._jobs))]

    def get(self, job_id: str) -> Job | None:
        return self._jobs.get(job_id)

    def events(
        self, *, kind: str | None, command_id: str | None, after_order: int | None
    ) -> list[dict[str, Any]]:
        """The matching events, oldest first. `after_order` holds for BashOutput only."""
        found = []
        for job in self._jobs.values():
            if command_id is not None and job.id != command_id:
                continue
            if kind in (None, "BashCommand"):
                found.append(job.command_event())
            if kind == "BashCommand" or job.output is None:
                continue
            if after_order is None or job.output["order"] > after_order:
                found.append(job.output)
        return found
