"""The sandboxes of one server: their states, the queue, and who is removed when.

queued -> starting -> ready -> stopped | failed. A start waits in order of arrival for one of
`max_sandboxes` places, then for one of `concurrent_starts`; the place is free again only when the
container is gone. Stopped and failed sandboxes stay listed for a while, with the reason.

Not covered: surviving a restart of the server; a new server removes what the old one left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import secrets
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from skiff.config.schema import Runtime
from skiff.errors import InfraError
from skiff.runtime.backend import Backend, Container, ContainerRequest, ImageNotFoundError, Limits
from skiff.runtime.jobs import Jobs

ENDED_KEPT = 1000  # ended sandboxes whose reason can still be asked for
REAP_SECONDS = 1.0

log = logging.getLogger("skiff.runtime")


class State(StrEnum):
    """Where a sandbox is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (State.STOPPED, State.FAILED)


class Failure(StrEnum):
    """What kind of failure ended a sandbox; the client turns it into its error."""

    IMAGE = "image"  # the task's fault: no such image
    INFRA = "infra"


@dataclass(frozen=True)
class SandboxRequest:
    """What a client asks for. `workdir` is where commands run that name no folder."""

    session_id: str
    image: str
    workdir: str
    environment: Mapping[str, str]
    limits: Limits
    lifetime_seconds: float
    idle_seconds: float


@dataclass(eq=False)
class Sandbox:
    """One sandbox of the server; only `Sandboxes` changes its state."""

    request: SandboxRequest
    runtime_id: str = field(default_factory=lambda: f"skiff-{secrets.token_hex(6)}")
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    url: str = ""
    port: int = 0
    state: State = State.QUEUED
    reason: str = ""
    failure: Failure | None = None
    created: float = field(default_factory=time.monotonic)
    last_used: float = field(default_factory=time.monotonic)
    calls: int = 0  # in flight
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no longer queued or starting
    jobs: Jobs = field(default_factory=Jobs)
    container_or_none: Container | None = None

    @property
    def container(self) -> Container:
        """The running container; InfraError with the reason when there is none."""
        if self.state is not State.READY or self.container_or_none is None:
            raise InfraError(self.reason or f"it is {self.state}", where=self.where)
        return self.container_or_none

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this lasts, and for `idle_seconds` after it, the sandbox is not idle."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            self.last_used = time.monotonic()

    def age_seconds(self) -> float:
        return time.monotonic() - self.created

    def idle_seconds(self) -> float:
        if self.calls:
            return 0
        return time.monotonic() - self.last_used

    @property
    def where(self) -> str:
        return f"sandbox {self.request.session_id} ({self.request.image})"


class Ports(Protocol):
    """Opens and closes the port of a sandbox; see `listeners`."""

    async def open(self, sandbox: Sandbox) -> None:
        """Listen, and set the sandbox's port and url."""
        ...

    def close(self, sandbox: Sandbox) -> None: ...


class Sandboxes:
    """Starts, finds and removes sandboxes. Use `open` first and `close` last."""

    def __init__(self, config: Runtime, backend: Backend, ports: Ports) -> None:
        self._backend = backend
        self._ports = ports
        self._max = config.max_sandboxes
        self._places = asyncio.Semaphore(config.max_sandboxes)
        self._starts = asyncio.Semaphore(config.concurrent_starts)
        self._by_session: dict[str, Sandbox] = {}
        self._by_runtime: dict[str, Sandbox] = {}
        self._lives: dict[Sandbox, asyncio.Task[None]] = {}
        self._ending: dict[Sandbox, asyncio.Event] = {}
        self._reaper: asyncio.Task[None] | None = None

    async def open(self) -> None:
        await self._backend.open()
        self._reaper = asyncio.create_task(self._reap())

    async def close(self) -> None:
        """Stop every sandbox; return when all containers are gone."""
        if self._reaper is not None:
            self._reaper.cancel()
        lives = list(self._lives.values())
        for sandbox in list(self._lives):
            self.stop(sandbox, "the server is shutting down")
        await asyncio.gather(*lives, return_exceptions=True)
        await self._backend.close()

    async def start(self, request: SandboxRequest) -> Sandbox:
        """A new sandbox, or the living one of the same session id. Returns at once."""
        known = self._by_session.get(request.session_id)
        if known is not None and not known.state.ended:
            return known
        sandbox = Sandbox(request)
        self._by_session[request.session_id] = sandbox
        self._by_runtime[sandbox.runtime_id] = sandbox
        await self._ports.open(sandbox)
        self._ending[sandbox] = asyncio.Event()
        self._lives[sandbox] = asyncio.create_task(self._live(sandbox))
        self._forget_old()
        return sandbox

    def by_session(self, session_id: str) -> Sandbox | None:
        return self._by_session.get(session_id)

    def by_runtime(self, runtime_id: str) -> Sandbox | None:
        return self._by_runtime.get(runtime_id)

    def all(self) -> list[Sandbox]:
        """Every sandbox that has not ended."""
        return list(self._lives)

    def stop(self, sandbox: Sandbox, reason: str, failure: Failure | None = None) -> None:
        """End a sandbox. Its container is removed in the background."""
        if sandbox.state.ended:
            return
        sandbox.state = State.STOPPED if failure is None else State.FAILED
        sandbox.reason = reason
        sandbox.failure = failure
        sandbox.settled.set()
        self._ports.close(sandbox)
        self._ending[sandbox].set()

    def counts(self) -> dict[str, int]:
        """Living sandboxes by state, and how many places there are."""
        states = [sandbox.state for sandbox in self._lives]
        living = (State.QUEUED, State.STARTING, State.READY)
        return {**{str(state): states.count(state) for state in living}, "places": self._max}

    async def _live(self, sandbox: Sandbox) -> None:
        """One sandbox from its place in the queue to the removal of its container."""
        ending = self._ending[sandbox]
        try:
            async with self._places:
                if not ending.is_set():
                    await self._bring_up(sandbox)
                await ending.wait()
                if (container := sandbox.container_or_none) is not None:
                    sandbox.container_or_none = None
                    await container.remove()
        except InfraError as error:
            log.error("%s could not be removed: %s", sandbox.where, error)
        finally:
            del self._lives[sandbox]
            del self._ending[sandbox]

    async def _bring_up(self, sandbox: Sandbox) -> None:
        request = sandbox.request
        try:
            async with self._starts:
                if sandbox.state.ended:
                    return
                sandbox.state = State.STARTING
                sandbox.container_or_none = await self._backend.start(
                    ContainerRequest(
                        name=sandbox.runtime_id,
                        image=request.image,
                        environment=request.environment,
                        limits=request.limits,
                    )
                )
        except ImageNotFoundError:
            self.stop(sandbox, f"no image {request.image} in the store", Failure.IMAGE)
        except InfraError as error:
            self.stop(sandbox, str(error), Failure.INFRA)
        else:
            if not sandbox.state.ended:
                sandbox.state = State.READY
                sandbox.created = sandbox.last_used = time.monotonic()
                sandbox.settled.set()

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS)
            for sandbox in self.all():
                if sandbox.state is not State.READY:
                    continue
                request = sandbox.request
                if (failure := sandbox.container.failure) is not None:
                    self.stop(sandbox, failure, Failure.INFRA)
                elif sandbox.age_seconds() > request.lifetime_seconds:
                    self.stop(sandbox, f"reaped: its {request.lifetime_seconds:g} s are over")
                elif sandbox.idle_seconds() > request.idle_seconds:
                    self.stop(sandbox, f"reaped: no call for {request.idle_seconds:g} s")

    def _forget_old(self) -> None:
        """Drop the oldest ended sandboxes beyond ENDED_KEPT."""
        excess = len(self._by_runtime) - len(self._lives) - ENDED_KEPT
        ended = (s for s in list(self._by_runtime.values()) if s not in self._lives)
        for sandbox in itertools.islice(ended, max(excess, 0)):
            del self._by_runtime[sandbox.runtime_id]
            if self._by_session.get(sandbox.request.session_id) is sandbox:
                del self._by_session[sandbox.request.session_id]
