"""The sandboxes of one server: their states, the queue, and who is removed when.

queued -> starting -> ready <-> paused, and from each of them -> stopped | failed. A start waits in
order of arrival for one of `max_sandboxes` places, then for one of `concurrent_starts`; the place
is free again only when the container is gone. Stopped and failed sandboxes stay listed for a while,
with the reason.

Every change is in the journal before a client can see it. A server that follows a killed one takes
over the living sandboxes (same id, key and port), queues again those that were not ready, and
removes the containers of all others. Their whole lifetime goes on counting; leases and idle times
begin anew, as clients could not call meanwhile. Not taken over: commands that were running.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from skiff.config.schema import Runtime
from skiff.errors import InfraError
from skiff.runtime.backend import (
    Backend,
    Container,
    ContainerRequest,
    ImageNotFoundError,
    Limits,
    SandboxEndedError,
)
from skiff.runtime.boottime import boot_id, boot_time
from skiff.runtime.jobs import Jobs
from skiff.runtime.journal import Entry, Journal

ENDED_KEPT = 1000  # ended sandboxes whose reason can still be asked for
REAP_SECONDS = 1.0

log = logging.getLogger("skiff.runtime")


class State(StrEnum):
    """Where a sandbox is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    READY = "ready"
    PAUSED = "paused"
    STOPPED = "stopped"
    FAILED = "failed"

    @property
    def ended(self) -> bool:
        return self in (State.STOPPED, State.FAILED)

    @property
    def running(self) -> bool:
        """It has a container that serves."""
        return self in (State.READY, State.PAUSED)


class Cause(StrEnum):
    """What ended a sandbox."""

    CLIENT = "client"  # it was told to stop
    SHUTDOWN = "shutdown"
    LIFETIME = "lifetime"
    IDLE = "idle"
    LEASE = "lease"
    IMAGE = "image"  # the task's fault: no such image
    SANDBOX = "sandbox"  # what ran in it has ended it, see `backend.End`
    INFRA = "infra"

    @property
    def is_failure(self) -> bool:
        """The client turns it into its error."""
        return self in (Cause.IMAGE, Cause.SANDBOX, Cause.INFRA)


@dataclass(frozen=True)
class SandboxRequest:
    """What a client asks for. `workdir` is where commands run that name no folder.

    lease_seconds  the sandbox is stopped when no call and no renewal comes for so long; unlike
                   `idle_seconds` it holds for queued and paused sandboxes, too. None: no lease
    """

    session_id: str
    image: str
    workdir: str
    environment: Mapping[str, str]
    limits: Limits
    lifetime_seconds: float
    idle_seconds: float
    lease_seconds: float | None = None


@dataclass(eq=False)
class Sandbox:
    """One sandbox of the server; only `Sandboxes` changes its state. Times are of `clock`."""

    request: SandboxRequest
    clock: Callable[[], float] = boot_time
    runtime_id: str = field(default_factory=lambda: f"skiff-{secrets.token_hex(6)}")
    key: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    url: str = ""
    port: int = 0
    state: State = State.QUEUED
    reason: str = ""
    cause: Cause | None = None  # of its end
    created: float = 0.0  # when it was asked for, then when it became ready
    last_used: float = 0.0
    renewed: float = 0.0
    calls: int = 0  # in flight
    settled: asyncio.Event = field(default_factory=asyncio.Event)  # no longer queued or starting
    over: asyncio.Event = field(default_factory=asyncio.Event)  # its container may be removed
    turning: asyncio.Lock = field(default_factory=asyncio.Lock)  # pause and resume
    jobs: Jobs = field(default_factory=Jobs)
    container_or_none: Container | None = None

    def __post_init__(self) -> None:
        if not self.created:
            self.created = self.clock()
        self.last_used = self.renewed = self.clock()

    @property
    def failure(self) -> Cause | None:
        """The cause, where it ended by a failure."""
        return self.cause if self.cause is not None and self.cause.is_failure else None

    @property
    def container(self) -> Container:
        """The running container; InfraError with the reason when there is none."""
        if self.state is not State.READY or self.container_or_none is None:
            raise InfraError(self.reason or f"the sandbox is {self.state}", where=self.where)
        return self.container_or_none

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """While this lasts the sandbox is not idle and its lease is renewed."""
        self.calls += 1
        try:
            yield
        finally:
            self.calls -= 1
            self.last_used = self.renewed = self.clock()

    def age_seconds(self) -> float:
        return self.clock() - self.created

    def idle_seconds(self) -> float:
        return 0 if self.calls else self.clock() - self.last_used

    def unrenewed_seconds(self) -> float:
        """Since the last call or renewal of its lease."""
        return 0 if self.calls else self.clock() - self.renewed

    @property
    def where(self) -> str:
        return f"sandbox {self.request.session_id} ({self.request.image})"


class Ports(Protocol):
    """The port of each sandbox; see `listeners`."""

    def reserve(self, sandbox: Sandbox) -> None:
        """Take the sandbox's port, or any free one when it is 0, and set its port and url.
        Connections wait until `open`. Raises InfraError when it is taken."""
        ...

    async def open(self, sandbox: Sandbox) -> None:
        """Answer on the port."""
        ...

    def close(self, sandbox: Sandbox) -> None: ...


class Sandboxes:
    """Starts, finds and removes sandboxes. Use `open` first and `close` last.

    `clock` gives seconds, and goes on while no server runs.
    """

    def __init__(
        self,
        config: Runtime,
        backend: Backend,
        ports: Ports,
        journal: Journal,
        *,
        clock: Callable[[], float] = boot_time,
    ) -> None:
        self.backend = backend
        self._ports = ports
        self._journal = journal
        self._clock = clock
        self._boot = boot_id()
        self._max = config.max_sandboxes
        self._places = asyncio.Semaphore(config.max_sandboxes)
        self._starts = asyncio.Semaphore(config.concurrent_starts)
        self._by_session: dict[str, Sandbox] = {}
        self._by_runtime: dict[str, Sandbox] = {}
        self._lives: dict[Sandbox, asyncio.Task[None]] = {}
        self._unsaved: set[Sandbox] = set()
        self._watchers: list[Callable[[Sandbox], None]] = []
        self._reaper: asyncio.Task[None] | None = None

    def watch(self, watcher: Callable[[Sandbox], None]) -> None:
        """Call `watcher` with a sandbox at each change of its state."""
        self._watchers.append(watcher)

    async def open(self) -> None:
        """Begin service, with the sandboxes of an earlier server; return when they answer."""
        entries = {entry.runtime_id: entry for entry in self._journal.entries()}
        for entry in entries.values():
            self._restore(entry)
        found = [s for s in self._by_runtime.values() if not s.state.ended]
        living = [sandbox for sandbox in found if sandbox.state.running]
        await self.backend.open([sandbox.runtime_id for sandbox in living])
        self._places = asyncio.Semaphore(max(self._max, len(living)))
        for sandbox in living:
            state, sandbox.state = sandbox.state, State.STARTING
            self._begin(sandbox, adopted=state)
        for sandbox in found:
            if sandbox.state is State.QUEUED:
                self._begin(sandbox)
        for sandbox in living:
            await sandbox.settled.wait()
        self._reaper = asyncio.create_task(self._reap())

    async def close(self) -> None:
        """Stop every sandbox; return when all containers are gone."""
        if self._reaper is not None:
            self._reaper.cancel()
        lives = list(self._lives.values())
        for sandbox in list(self._lives):
            self.stop(sandbox, "the server is shutting down", Cause.SHUTDOWN)
        await asyncio.gather(*lives, return_exceptions=True)
        try:
            await self.backend.close()
        finally:
            self._journal.close()

    async def start(self, request: SandboxRequest) -> Sandbox:
        """A new sandbox, or the living one of the same session id. Returns at once."""
        known = self._by_session.get(request.session_id)
        if known is not None and not known.state.ended:
            self.renew(known)
            return known
        sandbox = Sandbox(request, clock=self._clock)
        self._add(sandbox)
        try:
            self._ports.reserve(sandbox)
            self._journal.save(self._entry(sandbox))
        except InfraError as error:
            self.stop(sandbox, str(error), Cause.INFRA)
            return sandbox
        self._tell(sandbox)
        self._begin(sandbox)
        self._forget_old()
        return sandbox

    def by_session(self, session_id: str) -> Sandbox | None:
        return self._by_session.get(session_id)

    def by_runtime(self, runtime_id: str) -> Sandbox | None:
        return self._by_runtime.get(runtime_id)

    def all(self) -> list[Sandbox]:
        """Every sandbox that has not ended or whose container is not yet gone."""
        return list(self._lives)

    def renew(self, sandbox: Sandbox) -> None:
        """Its client is alive: its lease begins anew."""
        sandbox.renewed = self._clock()

    async def pause(self, sandbox: Sandbox) -> None:
        """Stop its processes where they stand; a paused one stays so. It keeps its place, its
        lifetime goes on and it is not idle. Raises InfraError when it is not running."""
        async with sandbox.turning:
            if sandbox.state is State.PAUSED:
                return
            container = sandbox.container
            self._enter(sandbox, State.PAUSED)
            await self._turn(sandbox, container.pause)

    async def resume(self, sandbox: Sandbox) -> None:
        """Let its processes go on; a running one does so. Raises InfraError when it has ended."""
        async with sandbox.turning:
            if (container := sandbox.container_or_none) is None or not sandbox.state.running:
                raise InfraError(
                    sandbox.reason or f"the sandbox is {sandbox.state}", where=sandbox.where
                )
            await self._turn(sandbox, container.resume)
            if sandbox.state is State.PAUSED:
                sandbox.last_used = self._clock()
                self._enter(sandbox, State.READY)

    def stop(self, sandbox: Sandbox, reason: str, cause: Cause) -> None:
        """End a sandbox. Its container is removed in the background."""
        if sandbox.state.ended:
            return
        waits = sandbox.state is State.QUEUED
        sandbox.reason = reason
        sandbox.cause = cause
        self._enter(sandbox, State.FAILED if cause.is_failure else State.STOPPED)
        sandbox.settled.set()
        sandbox.over.set()
        self._ports.close(sandbox)
        if waits and sandbox in self._lives:
            self._lives[sandbox].cancel()

    def counts(self) -> dict[str, int]:
        """Living sandboxes by state, how many `places` there are, and how many of them are `free`:
        less than 0 when so many starts wait for one."""
        states = [sandbox.state for sandbox in self._lives]
        living = (State.QUEUED, State.STARTING, State.READY, State.PAUSED)
        return {
            **{str(state): states.count(state) for state in living},
            "places": self._max,
            "free": self._max - len(states),
        }

    def _restore(self, entry: Entry) -> None:
        """A sandbox of an earlier server, in the state in which it can go on."""
        sandbox = Sandbox(
            _request(entry.request),
            clock=self._clock,
            runtime_id=entry.runtime_id,
            key=entry.key,
            port=entry.port,
            state=State(entry.state),
            reason=entry.reason,
            cause=Cause(entry.failure) if entry.failure else None,
            created=entry.created,
        )
        self._add(sandbox)
        if sandbox.state.ended:
            sandbox.settled.set()
            return
        try:
            self._ports.reserve(sandbox)
        except InfraError as error:
            self.stop(sandbox, str(error), Cause.INFRA)
            return
        if not sandbox.state.running:
            sandbox.state = State.QUEUED
            sandbox.created = self._clock()
        elif entry.boot != self._boot:
            self.stop(sandbox, "its host was restarted", Cause.INFRA)

    def _add(self, sandbox: Sandbox) -> None:
        self._by_session[sandbox.request.session_id] = sandbox
        self._by_runtime[sandbox.runtime_id] = sandbox

    def _begin(self, sandbox: Sandbox, *, adopted: State | None = None) -> None:
        """Begin its life; `adopted`: in which state an earlier server had its container."""
        life = asyncio.create_task(self._live(sandbox, adopted))
        self._lives[sandbox] = life
        life.add_done_callback(lambda _: self._lives.pop(sandbox))

    async def _live(self, sandbox: Sandbox, adopted: State | None) -> None:
        """One sandbox from its place in the queue to the removal of its container."""
        try:
            async with self._places:
                await self._bring_up(sandbox, adopted)
                await sandbox.over.wait()
                if (container := sandbox.container_or_none) is not None:
                    sandbox.container_or_none = None
                    await container.remove()
        except InfraError as error:
            log.error("%s could not be removed: %s", sandbox.where, error)

    async def _bring_up(self, sandbox: Sandbox, adopted: State | None) -> None:
        request = sandbox.request
        bring_up = self.backend.adopt if adopted else self.backend.start
        try:
            async with self._starts:
                if sandbox.state.ended:
                    return
                self._enter(sandbox, State.STARTING)
                sandbox.container_or_none = await bring_up(
                    ContainerRequest(
                        name=sandbox.runtime_id,
                        image=request.image,
                        environment=request.environment,
                        limits=request.limits,
                        lifetime_seconds=request.lifetime_seconds,
                    )
                )
                if adopted is State.PAUSED:
                    await sandbox.container_or_none.pause()
            if not sandbox.state.ended:
                await self._ports.open(sandbox)
        except ImageNotFoundError:
            self.stop(sandbox, f"no image {request.image} in the store", Cause.IMAGE)
        except SandboxEndedError as error:
            self.stop(sandbox, str(error), Cause.SANDBOX)
        except InfraError as error:
            self.stop(sandbox, str(error), Cause.INFRA)
        else:
            if not sandbox.state.ended:
                now = self._clock()
                if adopted is None:
                    sandbox.created = now
                sandbox.last_used = sandbox.renewed = now
                self._enter(sandbox, adopted or State.READY)
                sandbox.settled.set()

    async def _turn(self, sandbox: Sandbox, turn: Callable[[], Awaitable[None]]) -> None:
        """Pause or resume; a container that does not obey is of no use any more."""
        try:
            await turn()
        except InfraError as error:
            self.stop(sandbox, str(error), Cause.INFRA)
            raise

    def _enter(self, sandbox: Sandbox, state: State) -> None:
        """Change the state. What the journal can't take now, it is given by the reaper."""
        sandbox.state = state
        try:
            self._journal.save(self._entry(sandbox))
        except InfraError as error:
            if not self._unsaved:
                log.error("%s", error)
            self._unsaved.add(sandbox)
        self._tell(sandbox)

    def _tell(self, sandbox: Sandbox) -> None:
        for watcher in self._watchers:
            watcher(sandbox)

    def _entry(self, sandbox: Sandbox) -> Entry:
        return Entry(
            runtime_id=sandbox.runtime_id,
            key=sandbox.key,
            port=sandbox.port,
            state=sandbox.state,
            reason=sandbox.reason,
            failure=sandbox.failure,
            created=sandbox.created,
            boot=self._boot,
            request=dataclasses.asdict(sandbox.request),
        )

    async def _reap(self) -> None:
        while True:
            await asyncio.sleep(REAP_SECONDS)
            self._save_unsaved()
            for sandbox in self.all():
                self._check(sandbox)

    def _check(self, sandbox: Sandbox) -> None:
        """End a sandbox whose container or whose time is over."""
        request = sandbox.request
        container = sandbox.container_or_none
        lease = request.lease_seconds
        if sandbox.state.running and container is not None and (end := container.end) is not None:
            self.stop(sandbox, end.words, Cause.SANDBOX if end.own else Cause.INFRA)
        elif sandbox.state.running and sandbox.age_seconds() > request.lifetime_seconds:
            reason = f"reaped: its {request.lifetime_seconds:g} s are over"
            self.stop(sandbox, reason, Cause.LIFETIME)
        elif sandbox.state is State.READY and sandbox.idle_seconds() > request.idle_seconds:
            self.stop(sandbox, f"reaped: no call for {request.idle_seconds:g} s", Cause.IDLE)
        elif lease is not None and sandbox.unrenewed_seconds() > lease:
            self.stop(sandbox, f"reaped: its lease of {lease:g} s has expired", Cause.LEASE)

    def _save_unsaved(self) -> None:
        """Bring the journal up to date once its disk has room again."""
        for sandbox in list(self._unsaved):
            try:
                self._journal.save(self._entry(sandbox))
            except InfraError:
                return  # it was logged when it began
            self._unsaved.discard(sandbox)

    def _forget_old(self) -> None:
        """Drop the oldest ended sandboxes beyond ENDED_KEPT."""
        excess = len(self._by_runtime) - len(self._lives) - ENDED_KEPT
        if excess <= 0:
            return
        ended = (s for s in list(self._by_runtime.values()) if s not in self._lives)
        dropped = list(itertools.islice(ended, excess))
        for sandbox in dropped:
            del self._by_runtime[sandbox.runtime_id]
            if self._by_session.get(sandbox.request.session_id) is sandbox:
                del self._by_session[sandbox.request.session_id]
        self._journal.forget([sandbox.runtime_id for sandbox in dropped])


def _request(fields: Mapping[str, Any]) -> SandboxRequest:
    """The inverse of `dataclasses.asdict`."""
    return SandboxRequest(**{**fields, "limits": Limits(**fields["limits"])})
