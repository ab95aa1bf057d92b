"""What the server survives, with real containers: kill -9 in full work, a full disk, a jumping
clock, more starts than it will ever have places for."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from skiff.errors import InfraError
from skiff.podman import check_podman
from skiff.runtime.backend import CommandOutput, ContainerRequest, Limits
from skiff.runtime.control_messages import BATCH
from skiff.runtime.journal import Entry, Journal
from skiff.runtime.sandboxes import Sandboxes, SandboxRequest, State
from skiff.sandbox import RuntimeClient

SECONDS = 60.0
QUEUED = 10_000


def client_of(server: Any) -> RuntimeClient:
    return RuntimeClient([server.url], server.key, start_seconds=SECONDS)


async def control(server: Any, method: str, path: str, **content: Any) -> Any:
    """One call of the server's own port; its JSON answer."""
    async with httpx.AsyncClient(timeout=SECONDS, headers={"X-API-Key": server.key}) as http:
        answer = await http.request(method, server.url + path, **content)
        answer.raise_for_status()
        return answer.json()


async def listed(server: Any) -> dict[str, tuple[str, str, str]]:
    """session id -> (runtime id, url, key) of the sandboxes that run."""
    found = (await control(server, "GET", "/list"))["runtimes"]
    return {
        each["session_id"]: (each["runtime_id"], each["url"], each["session_api_key"])
        for each in found
        if each["pod_status"] == "ready"
    }


async def test_kill_with_32_busy_sandboxes(
    launch_server: Any, runtime_config: Any, make_spec: Any, busybox_image: str, containers_of: Any
) -> None:
    config = runtime_config(runtime={"concurrent_starts": 8}, sandbox={"pids": 64})
    server = launch_server(config)
    async with client_of(server) as client:
        specs = [make_spec(busybox_image) for _ in range(32)]
        sandboxes = await asyncio.gather(*[client.start(spec) for spec in specs])
        await asyncio.gather(*[s.write("/kept", s.session_id.encode()) for s in sandboxes])
        busy = [
            asyncio.create_task(s.run("trap '' TERM; touch /began; sleep 1000", timeout=900))
            for s in sandboxes
        ]
        places, containers = await listed(server), set(containers_of(server.folder))
        assert len(places) == len(containers) == 32
        server.end(signal.SIGKILL)
        ends = await asyncio.gather(*busy, return_exceptions=True)
        assert all(isinstance(end, InfraError) for end in ends), ends

        began = time.monotonic()
        server = launch_server(config)
        assert time.monotonic() - began < SECONDS / 2
        assert await listed(server) == places
        assert set(containers_of(server.folder)) == containers
    async with client_of(server) as client:
        for sandbox in sandboxes:
            same = await client.reattach(sandbox.session_id)
            assert await same.read("/kept") == sandbox.session_id.encode()
            left = await same.run("ps | grep -c '[s]leep 1000'", timeout=SECONDS)
            assert left.text == "0\n"
    assert server.end() == 0
    assert containers_of(server.folder) == []


async def test_paused_sandbox_stays_so(
    launch_server: Any, sandbox_config: Any, make_spec: Any, busybox_image: str
) -> None:
    server = launch_server(sandbox_config)
    async with client_of(server) as client:
        sandbox = await client.start(make_spec(busybox_image))
        await sandbox.run("(while :; do echo x >>/ticks; done) >/dev/null 2>&1 &", timeout=SECONDS)
        name = {"runtime_id": sandbox.runtime_id}
        await control(server, "POST", "/pause", json=name)
        server.end(signal.SIGKILL)
        server = launch_server(sandbox_config)
        (found,) = (await control(server, "GET", "/list"))["runtimes"]
        assert found["status"] == "paused"
        with pytest.raises(InfraError, match="paused"):
            await sandbox.run("true", timeout=SECONDS)
        sizes = [check_size(sandbox.runtime_id) for _ in range(2)]
        assert sizes[0] == sizes[1] > 0
        await control(server, "POST", "/resume", json=name)
        assert int((await sandbox.run("wc -l </ticks", timeout=SECONDS)).text) > 0
        await sandbox.stop()


def check_size(container: str) -> int:
    found = check_podman(["exec", container, "stat", "-c", "%s", "/ticks"])
    return int(found)


async def test_what_was_queued_is_started_by_the_next_server(
    launch_server: Any, runtime_config: Any, make_spec: Any, busybox_image: str
) -> None:
    config = runtime_config(runtime={"max_sandboxes": 1}, rollout={"max_concurrent": 1})
    server = launch_server(config)
    async with client_of(server) as client:
        first = await client.start(make_spec(busybox_image))
        body = {"image": busybox_image, "session_id": "waits", "hold_seconds": 0}
        told = await control(server, "POST", "/start", json=body)
        assert told["pod_status"] == "pending"
        server.end(signal.SIGKILL)
        server = launch_server(config)
    async with client_of(server) as client:
        await (await client.reattach(first.session_id)).stop()
        again = await control(server, "GET", "/sessions/waits", params={"wait_seconds": 30})
        for word in ("runtime_id", "url", "session_api_key"):
            assert again[word] == told[word]
        assert again["pod_status"] == "ready"


async def test_port_that_somebody_took_meanwhile(
    launch_server: Any, sandbox_config: Any, make_spec: Any, busybox_image: str, containers_of: Any
) -> None:
    server = launch_server(sandbox_config)
    async with client_of(server) as client:
        sandbox = await client.start(make_spec(busybox_image))
        port = int((await listed(server))[sandbox.session_id][1].rpartition(":")[2])
        server.end(signal.SIGKILL)
        with socket.create_server(("127.0.0.1", port)):
            server = launch_server(sandbox_config)
        found = await control(server, "GET", f"/sessions/{sandbox.session_id}")
        assert found["pod_status"] == "failed"
        assert str(port) in found["pod_logs"]
        assert containers_of(server.folder) == []


async def test_ten_thousand_queued_starts(launch_server: Any, runtime_config: Any) -> None:
    """Each has an url of its own; some are cancelled, the clients of the others are lost."""
    config = runtime_config(runtime={"max_sandboxes": 1}, rollout={"max_concurrent": 1})
    server = launch_server(config)
    bodies = [
        {"image": "localhost/skiff/none:1", "session_id": f"queued-{number}", "lease_seconds": 20}
        for number in range(QUEUED)
    ]
    os.kill(podman_service(server), signal.SIGSTOP)  # no start gets anywhere
    answers: list[Any] = []
    for at in range(0, QUEUED, BATCH):
        batch = {"starts": bodies[at : at + BATCH], "hold_seconds": 0}
        answers += await control(server, "POST", "/start_batch", json=batch)
    assert {answer["pod_status"] for answer in answers} == {"pending"}
    assert len({answer["url"] for answer in answers}) == QUEUED
    for answer in answers[1:100]:
        await control(server, "POST", "/stop", json={"runtime_id": answer["runtime_id"]})
    assert (await control(server, "GET", "/health"))["free"] == 1 - (QUEUED - 99)
    os.kill(podman_service(server), signal.SIGCONT)
    deadline = time.monotonic() + SECONDS
    while (health := await control(server, "GET", "/health"))["free"] != 1:
        assert time.monotonic() < deadline, health
        await asyncio.sleep(0.1)
    assert len(open_sockets(server.process.pid)) < 100


def open_sockets(pid: int) -> list[Path]:
    found = Path("/proc", str(pid), "fd").iterdir()
    return [path for path in found if str(path.readlink()).startswith("socket")]


def podman_service(server: Any) -> int:
    task = Path("/proc", str(server.process.pid), "task", str(server.process.pid))
    return int((task / "children").read_text().split()[0])


async def test_full_disk_of_the_journal(
    launch_server: Any, sandbox_config: Any, make_spec: Any, busybox_image: str
) -> None:
    """No sandbox begins unrecorded; those that run go on, and are known to the next server."""
    server = launch_server(sandbox_config)
    async with client_of(server) as client:
        sandbox = await client.start(make_spec(busybox_image))
        with file_size_limit(server.process.pid, 4096):
            with pytest.raises(InfraError, match="journal of the sandboxes cannot be used"):
                await client.start(make_spec(busybox_image))
            assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
            await control(server, "POST", "/pause", json={"runtime_id": sandbox.runtime_id})
            await control(server, "POST", "/resume", json={"runtime_id": sandbox.runtime_id})
        fresh = await client.start(make_spec(busybox_image))
        server.end(signal.SIGKILL)
        server = launch_server(sandbox_config)
        assert set(await listed(server)) == {sandbox.session_id, fresh.session_id}


@contextlib.contextmanager
def file_size_limit(pid: int, size: int) -> Iterator[None]:
    """While this lasts, the process can write no file beyond `size` bytes."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def entry(number: int, **fields: Any) -> Entry:
    known: dict[str, Any] = {
        "runtime_id": f"skiff-{number}",
        "key": "key",
        "port": number,
        "state": "ready",
        "reason": "",
        "failure": None,
        "created": 1.5,
        "boot": "a boot",
        "request": {"image": "busybox"},
    }
    return Entry(**known | fields)


def test_journal_keeps_and_forgets(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    journal = Journal(path)
    journal.save(entry(1))
    journal.save(entry(2))
    journal.save(entry(1, state="stopped", reason="enough"))
    assert path.stat().st_mode & 0o777 == 0o600
    with pytest.raises(InfraError, match="locked"):
        Journal(path, lock_seconds=0.1)
    journal.close()
    journal = Journal(path)
    assert journal.entries() == [entry(2), entry(1, state="stopped", reason="enough")]
    journal.forget(["skiff-1", "skiff-9"])
    assert journal.entries() == [entry(2)]
    journal.close()


def test_journal_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "journal.sqlite"
    path.write_bytes(b"not a database, " * 1000)
    with pytest.raises(InfraError, match=r"not a database\n  -> make room") as caught:
        Journal(path)
    assert caught.value.where == str(path)


class Quiet:
    """Containers that do nothing, as the clock's tests need none."""

    end = None

    def __init__(self) -> None:
        self.known: list[str] = []
        self.begun: list[str] = []

    async def open(self, known: Any) -> None:
        self.known = list(known)

    async def start(self, request: ContainerRequest) -> Quiet:
        self.begun.append(request.name)
        return self

    async def adopt(self, request: ContainerRequest) -> Quiet:
        self.begun.append(request.name)
        return self

    async def run(self, *_: Any, **__: Any) -> CommandOutput:
        raise AssertionError("no command is run here")

    async def nothing(self, *_: Any) -> None: ...

    pause = resume = remove = close = nothing


class Ports:
    """Ports that nobody calls."""

    def reserve(self, sandbox: Any) -> None:
        sandbox.url = "http://nobody"

    async def open(self, sandbox: Any) -> None: ...

    def close(self, sandbox: Any) -> None: ...


def request(session: str, **fields: Any) -> SandboxRequest:
    known: dict[str, Any] = {
        "image": "none",
        "workdir": "/",
        "environment": {},
        "limits": Limits(1, 1, 1, 1, 1, False),
        "lifetime_seconds": 1000,
        "idle_seconds": 1000,
        "lease_seconds": None,
    }
    return SandboxRequest(session_id=session, **known | fields)


@pytest.fixture
def clock() -> list[float]:
    """The injected clock's time."""
    return [5000.0]


@pytest.fixture
def served(sandbox_config: Any, tmp_path: Path, clock: list[float]) -> Any:
    """`served()`: a new server over the same journal; the first one is killed by forgetting it."""

    def serve() -> Sandboxes:
        journal = Journal(tmp_path / "journal.sqlite")
        quiet: Any = Quiet()
        return Sandboxes(sandbox_config.runtime, quiet, Ports(), journal, clock=lambda: clock[0])

    return serve


async def begun(sandboxes: Sandboxes, wanted: SandboxRequest) -> Any:
    sandbox = await sandboxes.start(wanted)
    await sandbox.settled.wait()
    return sandbox


def kill(sandboxes: Sandboxes) -> None:
    """What is left of a killed server: its journal."""
    sandboxes._journal.close()
    for task in [*sandboxes._lives.values(), sandboxes._reaper]:
        if task is not None:
            task.cancel()


async def test_wall_clock_that_jumps_ends_nothing(
    served: Any, clock: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    sandboxes = served()
    await sandboxes.open()
    sandbox = await begun(sandboxes, request("one", lease_seconds=60))
    for jump in (-1e9, 1e9):
        now = time.time() + jump
        monkeypatch.setattr(time, "time", lambda now=now: now)
        sandboxes._check(sandbox)
        assert sandbox.state is State.READY
        kill(sandboxes)
        sandboxes = served()
        await sandboxes.open()
        sandbox = sandboxes.by_session("one")
        assert sandbox.state is State.READY
    await sandboxes.close()


async def test_lifetime_goes_on_while_no_server_runs(served: Any, clock: list[float]) -> None:
    sandboxes = served()
    await sandboxes.open()
    for wanted in (request("old"), request("idle"), request("leased", lease_seconds=60)):
        await begun(sandboxes, wanted)
    clock[0] += 900
    kill(sandboxes)
    sandboxes = served()
    await sandboxes.open()
    old, leased = sandboxes.by_session("old"), sandboxes.by_session("leased")
    for sandbox in (old, leased):  # the lease could not be renewed meanwhile
        sandboxes._check(sandbox)
        assert sandbox.state is State.READY
    clock[0] += 61
    sandboxes._check(leased)
    assert (leased.state, leased.reason) == (
        State.STOPPED,
        "reaped: its lease of 60 s has expired",
    )
    clock[0] += 61
    sandboxes._check(old)
    assert old.reason == "reaped: its 1000 s are over"
    await sandboxes.close()


async def test_host_that_was_restarted(served: Any, tmp_path: Path) -> None:
    sandboxes = served()
    await sandboxes.open()
    await begun(sandboxes, request("one"))
    sandboxes._boot = "another"
    sandboxes._enter(sandboxes.by_session("one"), State.READY)
    kill(sandboxes)
    sandboxes = served()
    await sandboxes.open()
    assert sandboxes.backend.known == sandboxes.backend.begun == []
    assert sandboxes.by_session("one").reason == "its host was restarted"
    await sandboxes.close()


async def test_lease_of_queued_and_paused_sandboxes(served: Any, clock: list[float]) -> None:
    sandboxes = served()
    await sandboxes.open()
    paused = await begun(sandboxes, request("paused", lease_seconds=60, idle_seconds=10))
    await sandboxes.pause(paused)
    sandboxes._places = asyncio.Semaphore(0)
    queued = await sandboxes.start(request("queued", lease_seconds=60))
    clock[0] += 50
    sandboxes.renew(queued)
    sandboxes._check(paused)
    assert paused.state is State.PAUSED
    clock[0] += 50
    sandboxes._check(paused)
    sandboxes._check(queued)
    assert (paused.state, queued.state) == (State.STOPPED, State.QUEUED)
    clock[0] += 50
    sandboxes._check(queued)
    assert queued.state is State.STOPPED
    await sandboxes.close()
    assert not sandboxes.all()
