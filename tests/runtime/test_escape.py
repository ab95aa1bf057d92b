"""Attacks from inside a sandbox on its host, on its neighbours and on what runs it.

Each test gives the attacker what it would have in the worst case: root in its container, the true
name of what it wants, and time. `test_abuse` attacks the ports from outside, `test_limits` and
`test_neighbours` the host's resources.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from skiff.config import Config
from skiff.errors import InfraError
from skiff.sandbox import RuntimeClient, Sandbox, SandboxSpec

SECONDS = 60.0
SECRET = "a secret of the host"
# Under /proc/sys: of a sandbox's own IPC and process namespaces.
OWN_SETTINGS = "/(fs/mqueue/.*|kernel/(auto_msgmni|msg.*|sem.*|shm.*|ns_last_pid|pid_max))$"


@dataclass(frozen=True)
class Server:
    """A running server of one kind of back end, and its images."""

    url: str
    key: str
    images: Mapping[str, str]


@pytest.fixture(scope="module", params=["podman", "apptainer"])
def server(
    request: pytest.FixtureRequest,
    server_arguments: Callable[[Path, Config], list[str]],
    runtime_config: Callable[..., Config],
    images_of: Callable[[str], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    images = images_of(request.param)
    runtime: dict[str, Any] = {"backend": request.param}
    if request.param == "apptainer":
        runtime["sif_folder"] = str(Path(images["debian"]).parent)
    folder = tmp_path_factory.mktemp(request.param)
    arguments = server_arguments(folder, runtime_config(runtime=runtime))
    process = subprocess.Popen([sys.executable, *arguments], stderr=(folder / "log").open("wb"))
    deadline = time.monotonic() + SECONDS
    while not (folder / "runtime.json").exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.05)
    url = json.loads((folder / "runtime.json").read_text())["url"]
    yield Server(url, (folder / "key").read_text().strip(), images)
    process.terminate()
    assert process.wait(timeout=SECONDS) == 0


@pytest.fixture
async def opened(
    server: Server, make_spec: Callable[..., SandboxSpec]
) -> AsyncIterator[Callable[[str], AbstractAsyncContextManager[Sandbox]]]:
    """`async with opened(image) as sandbox`."""
    async with RuntimeClient([server.url], server.key) as client:
        yield lambda image: client.sandbox(make_spec(image))


@pytest.fixture
def host_file(tmp_path: Path) -> Path:
    """A file of the host that everybody may read and write, in folders that all may enter."""
    path = tmp_path / "secret.txt"
    path.write_text(SECRET)
    path.chmod(0o666)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.getuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    return path


@pytest.fixture
def host_process() -> Iterator[subprocess.Popen[bytes]]:
    """A process of the host with a secret in its environment."""
    process = subprocess.Popen(["sleep", "1000"], env={"PATH": os.environ["PATH"], "TEXT": SECRET})
    yield process
    process.kill()
    process.wait()


def _is_untouched(path: Path) -> bool:
    return path.read_text() == SECRET


async def test_host_files(host_file: Path, server: Server, opened: Any) -> None:
    async with opened(server.images["debian"]) as sandbox:
        attempts = f"""
            cat {host_file}
            for root in /proc/[0-9]*/root /proc/[0-9]*/cwd /proc/*/fd/*; do
                cat $root{host_file} $root/../../../../../..{host_file}
            done
            chroot /proc/1/root cat {host_file}
            unshare -Ur cat /proc/1/root{host_file}
            mount --bind / /mnt; cat /mnt{host_file}
            mount -t proc proc /proc
            nsenter -t 1 -m cat {host_file}
            for n in 1 2 3; do cat /proc/$n/root{host_file}; done
            echo tried
        """
        done = await sandbox.run(attempts, timeout=SECONDS)
        assert done.stdout == b"tried\n"
        assert SECRET not in done.text
    assert _is_untouched(host_file)


async def test_opening_by_handle(server: Server, opened: Any) -> None:
    """The old way out of a container: inode 2 of the file system that holds its own files."""
    program = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
for place in ("/", "/etc/hostname"):
    folder = os.open(place, os.O_RDONLY)
    handle = struct.pack("IiII", 8, 1, 2, 0)
    found = libc.open_by_handle_at(folder, handle, os.O_RDONLY)
    print(found, os.strerror(ctypes.get_errno()))
"""
    async with opened(server.images["debian"]) as sandbox:
        done = await sandbox.run(f"python3 -c '{program}'", timeout=SECONDS)
        assert done.exit_code == 0, done.text
        assert done.text == "-1 Operation not permitted\n" * 2


def _own_settings() -> dict[str, str]:
    """What OWN_SETTINGS names, on the host."""
    files = [path for path in Path("/proc/sys").rglob("*") if re.search(OWN_SETTINGS, str(path))]
    found = {str(path): path.read_text() for path in files if path.is_file()}
    found.pop("/proc/sys/kernel/ns_last_pid")  # changes with every fork
    return found


async def test_kernel_switches(server: Server, opened: Any) -> None:
    """Neither /sys, nor /proc/sys, nor what restarts or asks the kernel opens for writing, but for
    settings that each sandbox has for itself: those of the host stay."""
    async with opened(server.images["debian"]) as sandbox:
        attempts = f"""
            find /sys /proc/sys -type f -writable | grep -vE '{OWN_SETTINGS}'
            for file in /proc/sysrq-trigger /proc/kcore /proc/kmsg /dev/mem /dev/kmsg; do
                if [ -e $file ] && (: >>$file); then echo "$file opens"; fi
                if head -c 1 $file | grep -q .; then echo "$file is read"; fi
            done
            find /dev -type b
            dmesg
            echo tried
        """
        done = await sandbox.run(attempts, timeout=SECONDS)
        assert done.stdout == b"tried\n", done.text
        before = _own_settings()
        write = (
            f"find /proc/sys -writable | grep -E '{OWN_SETTINGS}' | xargs -n 1 sh -c 'echo 999 >$0'"
        )
        await sandbox.run(write, timeout=SECONDS)
        assert _own_settings() == before


async def test_devices(server: Server, opened: Any) -> None:
    async with opened(server.images["debian"]) as sandbox:
        done = await sandbox.run("find /dev -type c -printf '%P\\n'", timeout=SECONDS)
        harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx"}
        assert set(done.text.split()) <= harmless
        for kind in ("b 8 0", "b 254 0", "c 1 1", "c 10 200"):
            done = await sandbox.run(f"mknod /tmp/node {kind}", timeout=SECONDS)
            assert done.exit_code != 0, kind


async def test_host_processes(
    host_process: subprocess.Popen[bytes], server: Server, opened: Any
) -> None:
    pid = host_process.pid
    async with opened(server.images["debian"]) as sandbox:
        attempts = f"""
            cat /proc/{pid}/environ
            kill -9 {pid}
            grep -ao '{SECRET[:8]} secret[^"]*' /proc/[0-9]*/environ
            for file in /proc/[0-9]*/comm; do cat $file; done | sort -u
        """
        done = await sandbox.run(attempts, timeout=SECONDS)
        names = set(done.stdout.decode().split())
        assert names <= {"sh", "bash", "cat", "sort", "timeout"}, done.text
        done = await sandbox.run("kill -9 -1; kill -9 1; echo on", timeout=SECONDS)
    assert host_process.poll() is None
    assert psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_killing_everything_reaches_no_neighbour(server: Server, opened: Any) -> None:
    async with (
        opened(server.images["debian"]) as neighbour,
        opened(server.images["debian"]) as sandbox,
    ):
        working = asyncio.create_task(neighbour.run("sleep 2; echo done", timeout=SECONDS))
        for command in ("pkill -9 .", "kill -9 -1", "kill -9 -- -1; kill -9 0", "kill -9 1"):
            await sandbox.run(command, timeout=SECONDS)
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
        assert (await working).text == "done\n"


async def test_tracing_the_first_process(server: Server, opened: Any) -> None:
    """It belongs to the sandbox: who breaks it ends the sandbox, by name, and nothing else."""
    program = """
import ctypes
libc = ctypes.CDLL(None, use_errno=True)
PTRACE_KILL, PTRACE_ATTACH = 8, 16
libc.ptrace(PTRACE_ATTACH, 1, 0, 0)
libc.waitpid(1, 0, 0x40000001)
libc.ptrace(PTRACE_KILL, 1, 0, 0)
open("/proc/1/mem", "r+b").write(b"x")
"""
    async with (
        opened(server.images["debian"]) as neighbour,
        opened(server.images["debian"]) as sandbox,
    ):
        try:
            await sandbox.run(f"timeout 2 python3 -c '{program}'", timeout=3)
            then = (await sandbox.run("echo on", timeout=SECONDS)).text
        except InfraError as error:
            then = str(error)
        assert then == "on\n" or then.startswith("sandbox "), then
        assert (await neighbour.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_host_services(server: Server, opened: Any) -> None:
    """Neither the server's ports nor any socket of the host is there to be called."""
    port = urlsplit(server.url).port
    program = f"""
import socket
for host in ("127.0.0.1", "::1", "10.0.2.2", "169.254.169.254", "host.containers.internal"):
    try:
        socket.create_connection((host, {port}), 1)
        print("reached", host)
    except OSError:
        pass
with open("/proc/net/unix") as sockets:
    print(len(sockets.readlines()) - 1, "unix sockets")
"""
    async with opened(server.images["debian"]) as sandbox:
        done = await sandbox.run(f"python3 -c '{program}'", timeout=SECONDS)
        assert done.text == "0 unix sockets\n"
        done = await sandbox.run(
            "find / -xdev -type s; find /run /tmp /var -type s", timeout=SECONDS
        )
        assert done.text == ""


async def test_setuid_programs_gain_nothing(server: Server, opened: Any) -> None:
    """Neither root's setuid copy nor the image's own setuid programs lift a plain user."""
    async with opened(server.images["debian"]) as sandbox:
        attempts = """
            cp /bin/cat /tmp/cat; chown 0:0 /tmp/cat; chmod 6755 /tmp/cat
            echo hidden >/root/only; chmod 600 /root/only
            setpriv --reuid 1000 --regid 1000 --clear-groups /tmp/cat /root/only
            setpriv --reuid 1000 --regid 1000 --clear-groups cat /proc/self/status | grep CapEff
        """
        done = await sandbox.run(attempts, timeout=SECONDS)
        assert done.stdout.split() == [b"CapEff:", b"0000000000000000"], done.text
        assert b"Permission denied" in done.stderr


async def test_uploads_through_links_stay_inside(
    host_file: Path, server: Server, opened: Any
) -> None:
    """A link in the sandbox that spells a file of the host is a name inside the sandbox."""
    async with opened(server.images["debian"]) as sandbox:
        prepare = f"ln -s {host_file} /tmp/link; mkdir -p {host_file.parent}; ln -s / /tmp/root"
        assert (await sandbox.run(prepare, timeout=SECONDS)).exit_code == 0
        dots = "/tmp" + "/.." * 12 + str(host_file)
        for path in ("/tmp/link", str(host_file), f"/tmp/root{host_file}", dots):
            await sandbox.write(path, b"overwritten")
            assert await sandbox.read(path) == b"overwritten"
        assert (await sandbox.run(f"cat {host_file}", timeout=SECONDS)).text == "overwritten"
    assert _is_untouched(host_file)


async def test_own_key_opens_no_other_sandbox(server: Server, opened: Any) -> None:
    async with opened(server.images["busybox"]) as one, opened(server.images["busybox"]) as other:
        one._url, other._url = other._url, one._url
        for sandbox in (one, other):
            with pytest.raises(InfraError, match="X-Session-API-Key is missing or wrong"):
                await sandbox.run("true", timeout=SECONDS)
