"""What the server needs from a container engine.

Every method raises InfraError, with the engine's own words, when the engine or the container fails;
a command that merely fails is a `CommandOutput`. So is every command of a sandbox that has been
ended by what ran in it: see `End`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

ENDED = 137  # exit code of commands whose sandbox has ended: as if it was killed


@dataclass(frozen=True)
class Limits:
    """Limits of one sandbox. `output_bytes` is per command and stream."""

    memory_mib: int
    cpus: float
    pids: int
    disk_mib: int
    output_bytes: int
    network: bool


@dataclass(frozen=True)
class ContainerRequest:
    """One container to start. `name` is unique on the host.

    lifetime_seconds  the engine may end the container a while after it by itself, so that a server
                      that never comes back leaves nothing for ever; None: it does not
    """

    name: str
    image: str
    environment: Mapping[str, str]
    limits: Limits
    lifetime_seconds: float | None = None


@dataclass(frozen=True)
class CommandOutput:
    """How a command ended.

    exit_code  None: it was ended by its timeout or by `stop`
    truncated  bytes were left out of the middle of stdout or stderr, where a marker stands
    seconds    wall time in the sandbox
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool
    seconds: float


@dataclass(frozen=True)
class End:
    """Why a container is of no use any more.

    own  what ran in the sandbox has ended it, which is a failure of that and not of the machinery.
         When in doubt it is False: a trajectory is rather left out than marked down for us.
    """

    reason: str
    own: bool = False

    @property
    def words(self) -> str:
        """For who asks something of the ended sandbox."""
        return f"sandbox ended: {self.reason}" if self.own else self.reason


class SandboxEndedError(Exception):
    """The container to take over has an end of its own (`End.own`)."""


@dataclass(frozen=True)
class ImageInfo:
    """An image of the engine's store. `created` is in seconds since 1970."""

    name: str
    size_bytes: int
    created: float


class ImageNotFoundError(Exception):
    """The engine's store has no image of that name."""


class Container(Protocol):
    """One running container. Commands and file transfers run one at a time, in order of arrival."""

    @property
    def end(self) -> End | None:
        """None while it serves."""
        ...

    async def run(
        self, command: str, *, timeout: float, cwd: str, stop: asyncio.Event
    ) -> CommandOutput:
        """Run `command` in a fresh shell; its process group is ended after `timeout` seconds or
        when `stop` is set (SIGTERM, one second later SIGKILL). In a sandbox with an end of its own
        the exit code is ENDED."""
        ...

    async def read(self, path: str, *, offset: int, length: int) -> bytes:
        """At most `length` bytes of a regular file, from `offset` on; fewer only at its end.
        Raises FileNotFoundError, or OSError with the reason."""
        ...

    async def write(self, path: str, source: BinaryIO, mode: int) -> None:
        """Write a file and make its parent folders. `source` is read in pieces, to its end.
        Raises OSError with the reason."""
        ...

    async def pause(self) -> None:
        """Stop every process of the sandbox where it stands; its memory is kept."""
        ...

    async def resume(self) -> None:
        """Let them go on."""
        ...

    async def remove(self) -> None:
        """Kill and remove the container; calls in flight end with InfraError."""
        ...


class Backend(Protocol):
    """A container engine, bound to one server id."""

    async def open(self, known: Collection[str]) -> None:
        """Begin service. Containers that an earlier server of the same id has left behind are
        removed, but for those whose names are `known`."""
        ...

    async def start(self, request: ContainerRequest) -> Container:
        """Start a container and wait until it answers. Raises ImageNotFoundError."""
        ...

    async def adopt(self, request: ContainerRequest) -> Container:
        """Take over the container of that name from an earlier server, and wait until it answers.
        A command that was running in it is ended first. Raises InfraError when it is gone, and
        SandboxEndedError."""
        ...

    async def image(self, name: str) -> ImageInfo | None:
        """What the store knows about an image; None when it has none of that name."""
        ...

    async def build(self, context: Path, name: str) -> None:
        """Build `name` from the Dockerfile in the folder `context`, without network. Raises
        InfraError with the builder's words; also where the engine cannot build."""
        ...

    async def snapshot(self, container: Container, name: str) -> None:
        """Keep the container's files as the image `name`; it stands still meanwhile."""
        ...

    async def close(self) -> None:
        """Remove every container of this server and end the engine's service."""
        ...
