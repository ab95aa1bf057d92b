"""Sandboxes from start to end: queue, reaping, shutdown, kill -9, and a server that fails."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff.errors import InfraError
from skiff.podman import check_podman, podman_run_dir
from skiff.runtime.podman_backend import LABEL
from skiff.sandbox import RuntimeClient

SECONDS = 60.0


@pytest.fixture
def failing_start(tmp_path: Path, server_arguments: Any) -> Callable[..., str]:
    """`failing_start(config, NAME=value)`: what a server that can't come up says."""

    def fail(config: Any, **environment: str) -> str:
        done = subprocess.run(
            [sys.executable, *server_arguments(tmp_path, config)],
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode in (2, 3), done
        assert "Traceback" not in done.stderr
        return done.stderr

    return fail


def client_of(server: Any, **options: Any) -> RuntimeClient:
    return RuntimeClient([server.url], server.key, **options)


async def has(client: RuntimeClient, state: str, number: int) -> None:
    """Wait until so many sandboxes of the server are in `state`."""
    deadline = time.monotonic() + SECONDS
    while (counts := (await client.health())["sandboxes"])[state] != number:
        assert time.monotonic() < deadline, counts
        await asyncio.sleep(0.02)


async def becomes(condition: Callable[[], bool]) -> None:
    """Wait until `condition()` holds."""
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it never became so"
        await asyncio.sleep(0.05)


async def test_sixteen_at_once(runtime_client: RuntimeClient, opened: Any, images: Any) -> None:
    async def live(number: int) -> str:
        async with opened(images["busybox"]) as sandbox:
            return str((await sandbox.run(f"echo {number}", timeout=SECONDS)).text)

    found = await asyncio.gather(*[live(number) for number in range(16)])
    assert found == [f"{number}\n" for number in range(16)]
    counts = (await runtime_client.health())["sandboxes"]
    assert counts["ready"] == counts["queued"] == 0


async def test_full_server_queues(
    launch_server: Any, runtime_config: Any, make_spec: Any, busybox_image: str
) -> None:
    server = launch_server(
        runtime_config(runtime={"max_sandboxes": 1}, rollout={"max_concurrent": 1})
    )
    async with client_of(server) as client, client_of(server, start_seconds=0.5) as hasty:
        first = await client.start(make_spec(busybox_image))
        with pytest.raises(InfraError, match="not ready within"):
            await hasty.start(make_spec(busybox_image))
        second = asyncio.create_task(client.start(make_spec(busybox_image)))
        await has(client, "queued", 1)
        assert not second.done()
        await first.stop()
        sandbox = await second
        assert (await sandbox.run("echo second", timeout=SECONDS)).text == "second\n"
        await sandbox.stop()


async def test_idle_and_old_sandboxes_are_reaped(
    launch_server: Any, runtime_config: Any, make_spec: Any, busybox_image: str, containers_of: Any
) -> None:
    agent = {"command_seconds": 1, "trajectory_seconds": 2, "grade_seconds": 0.5}
    config = runtime_config(runtime={"idle_seconds": 1.5, "start_seconds": 0.5}, agent=agent)
    server = launch_server(config)
    async with client_of(server) as client:
        idle = await client.start(make_spec(busybox_image, config=config))
        # A running command is not idleness.
        assert (await idle.run("sleep 3", timeout=SECONDS)).exit_code == 0
        old = await client.start(
            make_spec(
                busybox_image,
                config=runtime_config(
                    runtime={"lifetime_seconds": 2, "start_seconds": 0.5}, agent=agent
                ),
            )
        )
        await becomes(lambda: containers_of(server.folder) == [])
        with pytest.raises(InfraError, match=r"no call for 1\.5 s"):
            await idle.run("true", timeout=SECONDS)
        with pytest.raises(InfraError, match="2 s are over"):
            await old.read("/etc/passwd")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_shutdown_leaves_nothing(
    number: int,
    launch_server: Any,
    sandbox_config: Any,
    make_spec: Any,
    busybox_image: str,
    containers_of: Any,
) -> None:
    server = launch_server(sandbox_config)
    services = _children(server.process.pid)
    assert services
    async with client_of(server) as client, client_of(server, start_seconds=1) as hasty:
        sandboxes = [await client.start(make_spec(busybox_image)) for _ in range(3)]
        busy = asyncio.create_task(sandboxes[0].run("sleep 1000", timeout=900))
        await asyncio.sleep(0)
        assert len(containers_of(server.folder)) == 3
        assert await asyncio.to_thread(server.end, number) == 0
        with pytest.raises(InfraError):
            await busy
        with pytest.raises(InfraError):
            await sandboxes[1].run("true", timeout=SECONDS)
        with pytest.raises(InfraError):
            await hasty.start(make_spec(busybox_image))
    assert containers_of(server.folder) == []
    assert not (server.folder / "runtime.json").exists()
    assert not any(_alive(pid) for pid in services)


async def test_orphans_are_removed_but_only_its_own(
    launch_server: Any, sandbox_config: Any, make_spec: Any, busybox_image: str, containers_of: Any
) -> None:
    other = "skiff-test-of-another-server"
    check_podman(["create", "--name", other, "--label=skiff.server=other", busybox_image, "sh"])
    try:
        server = launch_server(sandbox_config)
        services = _children(server.process.pid)
        async with client_of(server) as client:
            await client.start(make_spec(busybox_image))
        server_id = (server.folder / "runtime" / "server_id").read_text()
        check_podman(["create", f"--label={LABEL}={server_id}", busybox_image, "sh"])
        assert server.end(signal.SIGKILL) == -signal.SIGKILL
        await becomes(lambda: not any(_alive(pid) for pid in services))
        assert len(containers_of(server.folder)) == 2
        server = launch_server(sandbox_config)
        assert len(containers_of(server.folder)) == 1
        assert check_podman(["ps", "--all", "--quiet", "--filter", f"name={other}"])
        async with client_of(server) as client, client.sandbox(make_spec(busybox_image)) as fresh:
            assert (await fresh.run("echo on", timeout=SECONDS)).text == "on\n"
    finally:
        check_podman(["rm", "--force", other])


async def test_podman_service_that_dies(
    launch_server: Any, sandbox_config: Any, make_spec: Any, busybox_image: str, containers_of: Any
) -> None:
    server = launch_server(sandbox_config)
    async with client_of(server) as client:
        sandbox = await client.start(make_spec(busybox_image))
        for pid in _children(server.process.pid):
            os.kill(pid, signal.SIGKILL)
        with pytest.raises(InfraError):
            await sandbox.run("sleep 1", timeout=SECONDS)
        async with client.sandbox(make_spec(busybox_image)) as fresh:
            assert (await fresh.run("echo on", timeout=SECONDS)).text == "on\n"
        await becomes(lambda: containers_of(server.folder) == [])


def test_port_taken(failing_start: Any, runtime_config: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        text = failing_start(runtime_config(runtime={"port": port}))
    assert text.startswith(f"error: runtime.port: port {port} of 127.0.0.1 is taken\n  -> set")


def test_foreign_address(failing_start: Any, runtime_config: Any) -> None:
    text = failing_start(runtime_config(runtime={"host": "192.0.2.1"}))
    assert text.startswith("error: runtime.host: cannot listen on 192.0.2.1")


def test_podman_missing(failing_start: Any, sandbox_config: Any) -> None:
    text = failing_start(sandbox_config, PATH="/none")
    assert "podman is not installed\n  -> install podman" in text
    assert not [f for f in podman_run_dir().glob("serve-*") if not _alive(int(f.name[6:]))]


def test_key_file_that_others_can_read(
    failing_start: Any, sandbox_config: Any, tmp_path: Path
) -> None:
    (tmp_path / "key").write_text("secret")
    text = failing_start(sandbox_config)
    assert f"chmod 600 {tmp_path / 'key'}" in text
    assert "secret" not in text


def test_what_is_published(runtime_server: Any) -> None:
    place = json.loads((runtime_server.folder / "runtime.json").read_text())
    where = {"url", "host", "port", "pid", "key_file", "places"}
    assert set(place) == where | {"nonce", "started", "attempt", "job"}
    assert place["url"] == f"http://{place['host']}:{place['port']}"
    assert Path(place["key_file"]).stat().st_mode & 0o777 == 0o600
    for word in (runtime_server.key.encode(), b"session_api_key"):
        assert word not in runtime_server.log.read_bytes()
        assert word not in Path("/proc", str(place["pid"]), "cmdline").read_bytes()


def _children(pid: int) -> list[int]:
    return [
        int(word)
        for word in Path("/proc", str(pid), "task", str(pid), "children").read_text().split()
    ]


def _alive(pid: int) -> bool:
    try:
        stat = Path("/proc", str(pid), "stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(") ")[2][0] != "Z"
