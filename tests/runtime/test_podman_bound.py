"""A podman service of the host behind a bound socket, as a server inside an image uses it."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff import podman
from skiff.errors import InfraError
from skiff.podman import SOCKET_VARIABLE, check_podman
from skiff.runtime import podman_api
from skiff.runtime.backend import Container, ContainerRequest, ImageNotFoundError, Limits
from skiff.runtime.podman_backend import PodmanBackend
from skiff.sandbox import RuntimeClient
from skiff.sandbox.key import read_key_file

SECONDS = 60.0
SNAPSHOT = "localhost/skiff/test-bound:1"
LIMITS = Limits(memory_mib=64, cpus=1, pids=32, disk_mib=64, output_bytes=9999, network=False)
# As Apptainer runs an image: one id, and no way to gain others (newuidmap is of no use).
IMAGE_LIKE = ["unshare", "--user", "--map-root-user", "--mount", "setpriv", "--no-new-privs"]


@pytest.fixture
def start_host(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """`start_host(path)`: the program that serves the store at a socket."""
    started = []

    def start(path: Path, **environment: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "skiff.runtime.podman_host", "--socket", str(path)]
        started.append(
            subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.PIPE)
        )
        return started[-1]

    yield start
    for process in started:
        process.terminate()
        process.communicate(timeout=SECONDS)


@pytest.fixture
def bound(
    start_host: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:
    """The socket of a host's service; everything of this process uses it."""
    path = tmp_path / "host" / "podman.sock"
    start_host(path)
    answers(path)
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    return path


@pytest.fixture
async def backend(busybox_image: str, bound: Path) -> AsyncIterator[PodmanBackend]:
    backend = PodmanBackend("test-bound", build_cpus=1)
    await backend.open(known=())
    yield backend
    await backend.close()


def answers(path: Path) -> None:
    """Wait until somebody listens at `path`."""
    deadline = time.monotonic() + SECONDS
    while True:
        with socket.socket(socket.AF_UNIX) as connection:
            if connection.connect_ex(str(path)) == 0:
                return
        assert time.monotonic() < deadline
        time.sleep(0.02)


def ended(process: subprocess.Popen[bytes]) -> str:
    """What a host that can't serve says."""
    _, words = process.communicate(timeout=SECONDS)
    assert process.returncode in (2, 3), words
    return words.decode()


async def said(container: Container, command: str) -> tuple[int | None, bytes]:
    done = await container.run(command, timeout=SECONDS, cwd="/", stop=asyncio.Event())
    return done.exit_code, done.stdout


@pytest.fixture
def server(
    bound: Path, tmp_path: Path, server_arguments: Any, sandbox_config: Any
) -> Iterator[subprocess.Popen[bytes]]:
    """A server as in an image; its run folder is `tmp_path`."""
    command = [*IMAGE_LIKE, sys.executable, *server_arguments(tmp_path, sandbox_config)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE)
    deadline = time.monotonic() + SECONDS
    while not (tmp_path / "runtime.json").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)
    yield process
    process.terminate()
    process.communicate(timeout=SECONDS)


async def test_server_in_a_namespace_without_other_ids(
    server: subprocess.Popen[bytes],
    tmp_path: Path,
    make_spec: Any,
    busybox_image: str,
    containers_of: Callable[[Path], list[str]],
) -> None:
    assert Path("/proc", str(server.pid), "uid_map").read_text().split()[2] == "1"  # noqa: ASYNC240
    assert psutil.Process(server.pid).children() == []  # no podman of its own
    url = json.loads((tmp_path / "runtime.json").read_text())["url"]
    async with RuntimeClient([url], read_key_file(tmp_path / "key")) as client:
        sandbox = await client.start(make_spec(busybox_image))
        assert (await sandbox.run("id -u", timeout=SECONDS)).text == "0\n"
        content = os.urandom(300_000)
        await sandbox.write("/data/file", content)
        assert await sandbox.read("/data/file") == content
        hog = await sandbox.run("head -c 300m /dev/zero | tail", timeout=SECONDS)
        assert hog.exit_code == 137
        await sandbox.pause()
        await sandbox.resume()
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
        await sandbox.snapshot(SNAPSHOT)
        async with client.sandbox(make_spec(SNAPSHOT)) as copy:
            assert await copy.read("/data/file") == content
        assert await asyncio.to_thread(containers_of, tmp_path)
        server.terminate()
        assert await asyncio.to_thread(server.wait, SECONDS) == 0
    assert containers_of(tmp_path) == []
    check_podman(["image", "rm", SNAPSHOT])


async def test_kinds_of_calls(backend: PodmanBackend, busybox_image: str, tmp_path: Path) -> None:
    container = await backend.start(ContainerRequest("skiff-test-bound", busybox_image, {}, LIMITS))
    assert await said(container, "ulimit -n; echo on") == (0, b"1024\non\n")
    assert (await said(container, "exit 3"))[0] == 3
    done = await container.run("sleep 1000", timeout=0.3, cwd="/", stop=asyncio.Event())
    assert done.timed_out
    await container.remove()
    with pytest.raises(ImageNotFoundError):
        await backend.start(ContainerRequest("skiff-test-none", "localhost/none:1", {}, LIMITS))
    name = "localhost/skiff/test-bound-build:1"
    (tmp_path / "Dockerfile").write_text(
        f"FROM {busybox_image}\nCOPY word /word\nRUN cat /word; echo more >>/word\n"
    )
    (tmp_path / "word").write_text("hello\n")
    assert not await asyncio.to_thread(podman.image_exists, name)
    try:
        await backend.build(tmp_path, name)
        assert await backend.image(name) is not None
        built = await backend.start(ContainerRequest("skiff-test-built", name, {}, LIMITS))
        assert await built.read("/word", offset=0, length=99) == b"hello\nmore\n"
        await built.remove()
    finally:
        await asyncio.to_thread(check_podman, ["image", "rm", "--force", name])


async def test_service_that_dies_in_between(
    busybox_image: str,
    start_host: Callable[..., subprocess.Popen[bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    path = tmp_path / "host" / "podman.sock"
    host = start_host(path)
    monkeypatch.setenv(SOCKET_VARIABLE, str(path))
    backend = PodmanBackend("test-bound-dies")
    await backend.open(known=())  # waits until the host serves
    request = ContainerRequest("skiff-test-dies", busybox_image, {}, LIMITS)
    container = await backend.start(request)
    running = asyncio.create_task(said(container, "sleep 1000"))
    await asyncio.sleep(0.2)
    host.kill()
    with pytest.raises(InfraError):
        await running
    await asyncio.to_thread(host.communicate)
    again = ContainerRequest("skiff-test-again", busybox_image, {}, LIMITS)
    with pytest.raises(InfraError, match=f"podman service at {path}: no answer"):
        await backend.start(again)
    start_host(path)
    await asyncio.to_thread(answers, path)
    assert await said(await backend.start(again), "echo on") == (0, b"on\n")
    await backend.close()
    monkeypatch.delenv(SOCKET_VARIABLE)
    assert not check_podman(["ps", "--all", "--quiet", "--filter", "name=skiff-test-"])


async def test_nobody_at_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "none"))
    monkeypatch.setattr(podman_api, "READY_SECONDS", 0.1)
    with pytest.raises(InfraError, match="podman_host") as caught:
        await PodmanBackend("test-none").open(known=())
    assert str(tmp_path / "none") in str(caught.value)
    with pytest.raises(InfraError, match="podman image exists"):
        podman.image_exists("localhost/any:1")


def test_pids_of_another_namespace(bound: Path) -> None:
    """Memory could not be watched by them, or would be that of somebody else's process."""
    script = (
        "import sys; from pathlib import Path; from skiff.runtime.podman_api import PodmanApi;"
        "print(PodmanApi(Path(sys.argv[1])).shares_pids())"
    )
    asked = [sys.executable, "-c", script, str(bound)]
    apart = ["unshare", "--user", "--map-root-user", "--pid", "--fork", *asked]
    said = [subprocess.run(command, capture_output=True, text=True) for command in (asked, apart)]
    assert [done.stdout for done in said] == ["True\n", "False\n"]


@pytest.mark.parametrize(("rootless", "id_map"), [("true", None), ("false", podman.ROOT_ID_MAP)])
def test_ids_are_those_of_the_host(
    rootless: str,
    id_map: tuple[int, int] | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What the service says counts, not who we are in the image."""
    client = tmp_path / "podman"
    client.write_text(
        f"""#!/bin/sh\necho '{{"host": {{"security": {{"rootless": {rootless}}}}}}}'"""
    )
    client.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv(SOCKET_VARIABLE, str(tmp_path / "podman.sock"))
    assert podman.isolation().id_map == id_map


def test_host_ends_with_its_parent(tmp_path: Path) -> None:
    path = tmp_path / "host" / "podman.sock"
    host = [sys.executable, "-m", "skiff.runtime.podman_host", "--socket", str(path)]
    parent = subprocess.Popen(["sh", "-c", '"$@"; true', "sh", *host])
    answers(path)
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    parent.kill()
    parent.wait()
    deadline = time.monotonic() + SECONDS
    while path.parent.exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_host_ends_on_a_signal(
    tmp_path: Path, start_host: Callable[..., subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "host" / "podman.sock"
    host = start_host(path)
    answers(path)
    assert "another service answers there" in ended(start_host(path))
    answers(path)
    host.send_signal(signal.SIGINT)
    assert host.wait(timeout=SECONDS) == 0
    assert not path.parent.exists()


def test_host_that_cannot_serve(
    tmp_path: Path, start_host: Callable[..., subprocess.Popen[bytes]]
) -> None:
    path = tmp_path / "host" / "podman.sock"
    assert "podman is not installed" in ended(start_host(path, PATH="/none"))
    assert "107 bytes at most" in ended(start_host(tmp_path / ("x" * 107)))
    open_folder = tmp_path / "open"
    open_folder.mkdir()
    open_folder.chmod(0o755)
    assert "is open to others" in ended(start_host(open_folder / "podman.sock"))
    broken = tmp_path / "bin"
    broken.mkdir()
    (broken / "podman").write_text(
        '#!/bin/sh\ncase $* in *service*) echo "Error: no luck" >&2; exit 125;; esac\n'
        f'PATH="{os.environ["PATH"]}"; exec podman "$@"\n'
    )
    (broken / "podman").chmod(0o755)
    words = ended(start_host(path, PATH=f"{broken}:{os.environ['PATH']}"))
    assert "no luck" in words
    assert "exit status 125" in words
