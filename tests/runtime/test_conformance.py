"""What every back end must do, asked of each one at the interface, with its real programs.

The images are the same for both: podman's, and what is made of them for Apptainer (one real SIF,
two root folders). An image's USER is podman's affair: Apptainer has none.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import signal
import sys
import textwrap
import time
import tracemalloc
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
import pytest_asyncio
from skiff.apptainer import apptainer_root, check_mapped
from skiff.errors import InfraError
from skiff.podman import check_podman
from skiff.runtime import session
from skiff.runtime.apptainer_backend import ApptainerBackend
from skiff.runtime.backend import (
    ENDED,
    Backend,
    CommandOutput,
    Container,
    ContainerRequest,
    ImageNotFoundError,
    Limits,
)
from skiff.runtime.podman_backend import LABEL, PodmanBackend
from skiff.runtime.reading import PIECE_BYTES, pieces
from skiff.runtime.reading import content as content_of
from skiff.runtime.rootfs import RootFolders
from skiff.runtime.watchdog import Watched

pytestmark = pytest.mark.asyncio(loop_scope="module")
SECONDS = 30.0
IMAGES = ["debian", "busybox", "plain"]
LIMITS = Limits(memory_mib=128, cpus=1, pids=64, disk_mib=128, output_bytes=1 << 20, network=False)
# A server that starts sandboxes, lets one work, and waits for its end.
EARLIER_SERVER = """
    import asyncio, sys
    from pathlib import Path
    from skiff.apptainer import apptainer_root
    from skiff.runtime.apptainer_backend import ApptainerBackend
    from skiff.runtime.backend import ContainerRequest, Limits
    from skiff.runtime.podman_backend import PodmanBackend

    kind, server_id, image, *names = sys.argv[1:]

    async def main():
        backend = PodmanBackend(server_id)
        if kind == "apptainer":
            backend = ApptainerBackend(server_id, apptainer_root(), Path("/none"))
        await backend.open([])
        limits = Limits(128, 1, 64, 128, 1 << 20, False)
        started = [
            await backend.start(ContainerRequest(name, image, {"WORD": "kept"}, limits))
            for name in names
        ]
        working = started[0].run(
            "echo $WORD >/tmp/word; echo $$ >/tmp/pid; while :; do echo flood; done",
            timeout=1000, cwd="/", stop=asyncio.Event(),
        )
        task = asyncio.create_task(working)
        await asyncio.sleep(0.5)
        print("ready", flush=True)
        await task

    asyncio.run(main())
"""


@dataclass(frozen=True)
class Engine:
    """One kind of back end. `images` are names it knows; `left` lists what is still there of a
    server: containers, processes and folders. `forget` removes an image."""

    kind: str
    images: dict[str, str]
    make: Callable[[str], Backend]
    left: Callable[[str], list[str]]
    forget: Callable[[str], None]


@pytest.fixture(scope="module", params=["podman", "apptainer"])
def engine(request: pytest.FixtureRequest) -> Engine:
    kind = request.param
    images: dict[str, str] = request.getfixturevalue("images_of")(kind)
    if kind == "podman":
        return Engine(kind, images, PodmanBackend, _podman_left, _podman_forget)
    folder = Path(images["busybox"]).parent
    return Engine(
        kind,
        images,
        lambda server_id: ApptainerBackend(server_id, apptainer_root(), folder),
        _apptainer_left,
        _apptainer_forget,
    )


def _podman_left(server_id: str) -> list[str]:
    found = check_podman(["ps", "--all", "--quiet", "--filter", f"label={LABEL}={server_id}"])
    return found.decode().split()


def _podman_forget(image: str) -> None:
    check_podman(["rmi", "--force", image])


def _apptainer_forget(image: str) -> None:
    snapshot = RootFolders(apptainer_root() / "roots", Path("/none")).snapshot(image)
    check_mapped(["find", ".", "-mindepth", "1", "-delete"], cwd=snapshot)
    snapshot.rmdir()


def _apptainer_left(server_id: str) -> list[str]:
    folder = apptainer_root() / "sandboxes" / server_id
    return [str(path) for path in folder.glob("*")] + _processes_of(server_id)


def _processes_of(server_id: str) -> list[str]:
    """Commands of processes that hold something of this server open."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            if server_id in str(Path(f"/proc/{process.pid}/fd/0").readlink()):
                found.append(process.name())
    return found


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def backend(engine: Engine) -> AsyncIterator[Backend]:
    server_id = f"test-{uuid.uuid4().hex[:12]}"
    made = engine.make(server_id)
    await made.open([])
    yield made
    await made.close()
    assert engine.left(server_id) == []


Start = Callable[..., Awaitable[Container]]


@pytest_asyncio.fixture(loop_scope="module")
async def start(engine: Engine, backend: Backend) -> AsyncIterator[Start]:
    """`await start(image, env=..., memory_mib=64)`: a container that ends with the test."""
    started: list[Container] = []

    async def one(image: str, *, env: dict[str, str] | None = None, **limits: Any) -> Container:
        request = _request(engine.images.get(image, image), env=env, **limits)
        started.append(await backend.start(request))
        return started[-1]

    yield one
    for container in started:
        await container.remove()


def _request(image: str, *, env: dict[str, str] | None = None, **limits: Any) -> ContainerRequest:
    values = {**vars(LIMITS), **limits}
    return ContainerRequest(f"skiff-test-{uuid.uuid4().hex}", image, env or {}, Limits(**values))


async def _run(
    container: Container,
    command: str,
    *,
    timeout: float = SECONDS,
    cwd: str = "/",
    stop: asyncio.Event | None = None,
) -> CommandOutput:
    return await container.run(command, timeout=timeout, cwd=cwd, stop=stop or asyncio.Event())


async def _text(container: Container, command: str) -> str:
    done = await _run(container, command)
    assert done.exit_code == 0, done
    return done.stdout.decode()


@pytest.mark.parametrize("image", IMAGES)
async def test_what_a_command_meets(image: str, start: Start) -> None:
    container = await start(image, env={"PLACE": "a 'quoted'\n$place"})
    done = await _run(container, 'pwd; echo "$PLACE"; echo bad >&2; exit 7', cwd="/tmp")
    assert (done.exit_code, done.timed_out, done.truncated) == (7, False, False)
    assert (done.stdout, done.stderr) == (b"/tmp\na 'quoted'\n$place\n", b"bad\n")
    assert await _text(container, "cat; cd /tmp; x=1; umask") == "0022\n"  # stdin is empty
    assert await _text(container, "echo [$x]; pwd; echo $HOME >/dev/null") == "[]\n/\n"
    done = await _run(container, r"printf '\000\377\n'; printf '\376' >&2; echo >/dev/null")
    assert (done.stdout, done.stderr) == (b"\0\xff\n", b"\xfe")


async def test_image_environment(start: Start) -> None:
    assert await _text(await start("busybox"), "echo $GREETING") == "hello\n"


async def test_nothing_of_the_engine_in_the_environment(start: Start) -> None:
    names = (await _text(await start("busybox"), "env | cut -d= -f1")).split()
    assert not [name for name in names if name.startswith(("APPTAINER", "SINGULARITY", "SKIFF"))]


async def test_shell(start: Start) -> None:
    assert (await _run(await start("debian"), '[ -n "$BASH_VERSION" ]')).exit_code == 0
    assert (await _run(await start("plain"), '[ -z "$BASH_VERSION" ]')).exit_code == 0


async def test_removed_folders_can_be_made_again(start: Start) -> None:
    container = await start("debian")
    command = "rm -rf /usr/share/doc && mkdir /usr/share/doc && mv /opt /opt2 && ls /usr/share/doc"
    assert await _text(container, command) == ""


async def test_long_output_keeps_both_ends(start: Start) -> None:
    container = await start("busybox", output_bytes=1000)
    command = "echo first; head -c 5000000 /dev/zero; echo last; echo short >&2"
    done = await _run(container, command)
    assert done.truncated
    assert done.stdout.startswith(b"first\n")
    assert done.stdout.endswith(b"last\n")
    assert b"bytes left out" in done.stdout
    assert (done.exit_code, done.stderr) == (0, b"short\n")


@pytest.mark.parametrize("image", IMAGES)
async def test_timeout_ends_the_whole_group(image: str, start: Start) -> None:
    container = await start(image)
    command = "echo begun; (sleep 1; touch /tmp/late) & trap '' TERM; sleep 1000"
    done = await _run(container, command, timeout=0.3)
    assert (done.exit_code, done.timed_out, done.stdout) == (None, True, b"begun\n")
    assert done.seconds > 1  # SIGKILL comes a second after SIGTERM
    assert await _text(container, "[ ! -e /tmp/late ] && echo gone") == "gone\n"


async def test_stop(start: Start) -> None:
    container, stop = await start("busybox"), asyncio.Event()
    asyncio.get_running_loop().call_later(0.2, stop.set)
    done = await _run(container, "echo begun; sleep 1000", stop=stop)
    assert (done.exit_code, done.timed_out, done.stdout) == (None, False, b"begun\n")


async def test_background_job_does_not_delay_the_answer(start: Start) -> None:
    container = await start("debian")
    job = await _text(container, "sleep 1000 & echo $!")
    assert await _text(container, f"kill {int(job)} && echo lived") == "lived\n"


async def test_kill_everything(start: Start) -> None:
    container = await start("debian")
    await _run(container, "kill -9 -1")
    assert await _text(container, "echo on | cat") == "on\n"


async def test_files(start: Start) -> None:
    container = await start("plain")
    content = os.urandom(300_000) + b"\\0\n'"
    await container.write("/tmp/a/b c/file", io.BytesIO(content), 0o640)
    assert await content_of(container, "/tmp/a/b c/file") == content
    assert await _text(container, "stat -c %a '/tmp/a/b c/file'") == "640\n"
    await container.write("/tmp/empty", io.BytesIO(b""), 0o600)
    assert await content_of(container, "/tmp/empty") == b""
    with pytest.raises(FileNotFoundError):
        await content_of(container, "/tmp/none")
    with pytest.raises(OSError, match="irectory"):
        await container.write("/tmp/empty/file", io.BytesIO(b"x"), 0o644)


async def test_pause(start: Start) -> None:
    container = await start("debian")
    ticks = "while :; do echo >>/tmp/ticks; sleep 0.05; done &"
    await _run(container, f"{ticks} until [ -s /tmp/ticks ]; do sleep 0.01; done")
    await container.pause()
    children = psutil.Process(await _first_pid(container)).children(recursive=True)
    assert {child.status() for child in children} == {psutil.STATUS_STOPPED}
    with pytest.raises(InfraError, match="paused"):
        await _run(container, "true")
    await container.resume()
    before = int(await _text(container, "wc -l </tmp/ticks"))
    command = f"until [ $(wc -l </tmp/ticks) -gt {before + 2} ]; do sleep 0.05; done"
    assert (await _run(container, command)).exit_code == 0


async def test_memory_limit(start: Start) -> None:
    container = await start("busybox", memory_mib=64)
    done = await _run(container, "head -c 300000000 /dev/zero | tail")  # holds it, as one line
    assert done.exit_code == 137, done
    assert await _text(container, "echo on") == "on\n"


async def test_process_limit(start: Start) -> None:
    container = await start("debian", pids=24)
    done = await _run(container, "bomb() { bomb | bomb & }; bomb; sleep 1", timeout=2)
    assert b"fork" in done.stderr
    await _run(container, "kill -9 -1")
    assert await _text(container, "echo on | cat") == "on\n"


async def test_size_of_one_file(start: Start) -> None:
    container = await start("busybox", disk_mib=8)
    done = await _run(container, "head -c 100000000 /dev/zero >/big")
    assert done.exit_code != 0
    assert await _text(container, "stat -c %s /big") == f"{8 << 20}\n"


async def test_disk_limit(start: Start) -> None:
    container = await start("busybox", disk_mib=32)
    done = await _run(container, "for n in 1 2 3; do head -c 20m /dev/zero >/f$n; done; sleep 1000")
    assert done.exit_code == 137
    assert b"MiB of its 32 MiB of disk" in done.stderr
    assert await _text(container, "rm /f*; echo on") == "on\n"


@pytest.mark.parametrize("place", ["/dev", "/dev/shm"])
async def test_memory_as_files_is_bounded(place: str, start: Start) -> None:
    container = await start("busybox")
    done = await _run(container, f"head -c 100m /dev/zero >{place}/big")
    assert done.exit_code != 0
    assert int(await _text(container, f"stat -c %s {place}/big")) <= 64 << 20


async def test_no_way_out(start: Start) -> None:
    container = await start("debian")
    assert (await _text(container, "tail -n +3 /proc/net/dev | cut -d: -f1")).split() == ["lo"]
    assert "NoNewPrivs:\t1" in await _text(container, "cat /proc/self/status")
    for command in (
        "mount -t tmpfs none /mnt",
        "mknod /dev/x b 8 0",
        "echo x >/proc/sys/kernel/core_pattern",
        "unshare --mount true",
    ):
        assert (await _run(container, command)).exit_code != 0, command
    # Root in there is nobody special out here; as an ordinary user it is ourselves.
    assert (await _text(container, "cat /proc/self/uid_map")).split()[:2] not in (["0", "0"], [])
    # Descriptors of the first process: its streams, and what its shell has made of them.
    kinds = await _text(container, "for fd in /proc/1/fd/*; do stat -L -c %F $fd; done | sort -u")
    assert set(kinds.splitlines()) <= {"fifo", "character special file"}


async def test_no_files_of_the_host(start: Start) -> None:
    container = await start("debian")
    mounts = await _text(container, "cut -d' ' -f2,3 /proc/mounts")
    found = dict(line.split(" ") for line in mounts.splitlines())
    assert found.pop("/") == "overlay"
    virtual = ("proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2", "devtmpfs")
    left = [place for place, kind in found.items() if kind not in virtual]
    # Single files that podman makes for the container, and masked devices.
    made = ("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv", "/dev/")
    assert [place for place in left if not place.startswith(made)] == []
    assert await _text(container, "uname -n") != os.uname().nodename + "\n"


async def test_neighbours_are_apart(start: Start) -> None:
    one, other = await start("busybox"), await start("busybox")
    await _run(one, "echo secret >/etc/secret; sleep 1000 &")
    assert (await _run(other, "cat /etc/secret")).exit_code != 0
    assert "sleep 1000" not in await _text(other, "ps")


async def test_its_end_is_no_failed_command(start: Start) -> None:
    container = await start("busybox")
    os.kill(await _first_pid(container), signal.SIGKILL)
    with pytest.raises(InfraError, match=r"ended|closed the stream"):
        await _run(container, "echo never")
    assert container.end is not None
    assert not container.end.own  # no process of the sandbox can do that


@pytest.mark.parametrize("image", IMAGES)
async def test_large_file_passes_in_pieces(image: str, start: Start) -> None:
    container = await start(image)
    script = "i=0; while [ $i -lt 60 ]; do head -c 1048575 /dev/zero; echo; i=$((i + 1)); done"
    made = await _run(container, f"{{ {script}; printf end; }} >/tmp/large")
    assert made.exit_code == 0, made
    await _run(container, "echo warm")
    seen = 0
    tracemalloc.start()
    async for piece in pieces(container, "/tmp/large"):
        assert piece == (b"end" if len(piece) == 3 else bytes(PIECE_BYTES - 1) + b"\n")
        seen += len(piece)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert seen == (60 << 20) + 3
    assert peak < 12 << 20
    await _run(container, "head -c 10485760 /dev/zero >>/tmp/large")
    with pytest.raises(OSError, match="larger than 64 MiB"):
        await anext(pieces(container, "/tmp/large"))


async def test_files_of_the_kernel(start: Start) -> None:
    """They have no size, and a read of them may come short."""
    container = await start("debian")
    assert (await content_of(container, "/proc/self/status")).startswith(b"Name:")
    assert len(await content_of(container, "/proc/mounts")) == int(
        await _text(container, "wc -c </proc/mounts")
    )


@pytest.mark.parametrize("image", IMAGES)
async def test_end_that_the_sandbox_has_caused(image: str, engine: Engine, start: Start) -> None:
    """Podman: memory that no process holds, so that the first one is killed for it at last.
    Apptainer: its root may write to its first process's stdin."""
    container = await start(image, memory_mib=32)
    attack = "echo 'exit 3' >/proc/1/fd/0"
    if engine.kind == "podman":
        attack = "head -c 60m /dev/zero >/dev/shm/full; head -c 60m /dev/zero | tail >/dev/null"
    deadline = time.monotonic() + SECONDS
    while container.end is None:
        await _run(container, attack)
        assert time.monotonic() < deadline
    for _ in range(2):
        done = await _run(container, "echo never")
        assert done.exit_code == ENDED, done
        assert done.stderr.startswith(b"sandbox ended: "), done
        assert b"out of memory" in done.stderr or b"exit status 3" in done.stderr
    assert container.end.own
    with pytest.raises(OSError, match="sandbox ended"):
        await content_of(container, "/etc/passwd")
    with pytest.raises(OSError, match="sandbox ended"):
        await container.write("/tmp/file", io.BytesIO(b"x"), 0o644)
    with pytest.raises(InfraError, match="sandbox ended"):
        await container.pause()


@pytest.mark.parametrize(
    "attack",
    [
        "kill -9 -1",
        "kill -9 1",
        "kill -TERM 1; kill -INT 1; kill -QUIT 1; kill -ABRT 1",
        "kill -9 $PPID",
        "kill -HUP 1",
        'printf "skiff_run \'open" >/proc/1/fd/0',
        "cat /proc/1/fd/0 >/dev/null 2>&1 &",
    ],
)
async def test_attack_that_its_first_process_survives(
    attack: str, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "KILL_GRACE_SECONDS", 0.5)
    container = await start("debian")
    await _run(container, attack, timeout=1)
    for _ in range(3):  # a thief does not get every line
        await _run(container, "true", timeout=1)
    assert await _text(container, "echo on") == "on\n"


async def _first_pid(container: Container) -> int:
    return await cast(Watched, container).first_pid()


async def test_unknown_image(backend: Backend, start: Start) -> None:
    assert await backend.image("localhost/skiff/none:1") is None
    with pytest.raises(ImageNotFoundError):
        await start("localhost/skiff/none:1")


async def test_image(backend: Backend, engine: Engine) -> None:
    found = await backend.image(engine.images["busybox"])
    assert found is not None
    assert found.size_bytes > 500_000
    assert 1.5e9 < found.created <= time.time()


async def test_snapshot(backend: Backend, engine: Engine, start: Start) -> None:
    container = await start("busybox")
    await _run(container, "echo kept >/etc/kept; rm /bin/vi; rm -rf /root; mkdir -m 700 /root")
    name = f"localhost/skiff/test-snapshot:{uuid.uuid4().hex[:8]}"
    await backend.snapshot(container, name)
    await _run(container, "echo later >/etc/kept")
    copy = await start(name)
    command = "cat /etc/kept; ls /bin/vi 2>/dev/null; stat -c %a /root; ls -A /root"
    assert (await _run(copy, command)).stdout == b"kept\n700\n"
    assert await backend.image(name) is not None
    await copy.remove()
    engine.forget(name)
    assert await backend.image(name) is None


async def test_build(backend: Backend, engine: Engine, start: Start, tmp_path: Path) -> None:
    (tmp_path / "Dockerfile").write_text(f"FROM {engine.images['busybox']}\nRUN touch /built\n")
    name = f"localhost/skiff/test-build:{uuid.uuid4().hex[:8]}"
    if engine.kind == "apptainer":
        with pytest.raises(InfraError, match="podman"):
            await backend.build(tmp_path, name)
        return
    await backend.build(tmp_path, name)
    container = await start(name)
    assert await _text(container, "ls /built") == "/built\n"
    await container.remove()
    engine.forget(name)


async def test_survives_its_server(engine: Engine) -> None:
    """A server is killed while it works; the next one keeps one sandbox and removes the other."""
    server_id = f"test-{uuid.uuid4().hex[:12]}"
    request, unknown = _request(engine.images["debian"]), _request(engine.images["debian"])
    arguments = [engine.kind, server_id, request.image, request.name, unknown.name]
    earlier = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        textwrap.dedent(EARLIER_SERVER),
        *arguments,
        stdout=asyncio.subprocess.PIPE,
    )
    assert earlier.stdout is not None
    assert await earlier.stdout.readline() == b"ready\n"
    earlier.kill()
    await earlier.wait()
    backend = engine.make(server_id)
    await backend.open([request.name])
    try:
        container = await backend.adopt(request)
        assert await _text(container, "cat /tmp/word; echo $WORD") == "kept\nkept\n"
        assert (
            await _text(container, "kill -0 $(cat /tmp/pid) 2>/dev/null || echo over") == "over\n"
        )
        assert (await _run(container, "sleep 1000", timeout=0.1)).timed_out
        with pytest.raises(InfraError):
            await backend.adopt(unknown)
        await container.remove()
    finally:
        await backend.close()
    assert engine.left(server_id) == []
