"""Attacks from inside a sandbox on its host, on its neighbours and on what runs it.

Each test gives the attacker what it would have in the worst case: root in its container, the true
name of what it wants, and time. `test_abuse` attacks the ports from outside, `test_limits` and
`test_neighbours` the host's resources.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
from skiff.errors import InfraError
from skiff.sandbox import RuntimeClient

SECONDS = 60.0
SECRET = "a secret of the host"


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


async def test_host_files(host_file: Path, images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as sandbox:
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


async def test_opening_by_handle(images: Any, opened: Any) -> None:
    """The old way out of a container: inode 2 of the file system that holds its own files."""
    program = """
import ctypes, os, struct
libc = ctypes.CDLL(None, use_errno=True)
for place in ("/", "/etc/hostname", "/etc/hosts"):
    folder = os.open(place, os.O_RDONLY)
    handle = struct.pack("IiII", 8, 1, 2, 0)
    found = libc.open_by_handle_at(folder, handle, os.O_RDONLY)
    print(found, os.strerror(ctypes.get_errno()))
"""
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run(f"python3 -c '{program}'", timeout=SECONDS)
        assert done.exit_code == 0, done.text
        assert done.text == "-1 Operation not permitted\n" * 3


async def test_kernel_switches(images: Any, opened: Any) -> None:
    """Nothing under /sys and /proc/sys opens for writing, nor what restarts or asks the kernel."""
    async with opened(images["debian"]) as sandbox:
        attempts = """
            find /sys /proc/sys -type f -writable
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


async def test_devices(images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run("find /dev -type c -printf '%P\\n'", timeout=SECONDS)
        harmless = {"null", "zero", "full", "random", "urandom", "tty", "ptmx", "pts/ptmx"}
        assert set(done.text.split()) <= harmless
        for kind in ("b 8 0", "b 254 0", "c 1 1", "c 10 200"):
            done = await sandbox.run(f"mknod /tmp/node {kind}", timeout=SECONDS)
            assert done.exit_code != 0, kind


async def test_host_processes(
    host_process: subprocess.Popen[bytes], images: Any, opened: Any
) -> None:
    pid = host_process.pid
    async with opened(images["debian"]) as sandbox:
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


async def test_killing_everything_reaches_no_neighbour(images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as neighbour, opened(images["debian"]) as sandbox:
        working = asyncio.create_task(neighbour.run("sleep 2; echo done", timeout=SECONDS))
        for command in ("pkill -9 .", "kill -9 -1", "kill -9 -- -1; kill -9 0", "kill -9 1"):
            await sandbox.run(command, timeout=SECONDS)
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
        assert (await working).text == "done\n"


async def test_tracing_the_first_process(images: Any, opened: Any) -> None:
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
    async with opened(images["debian"]) as neighbour, opened(images["debian"]) as sandbox:
        try:
            await sandbox.run(f"timeout 2 python3 -c '{program}'", timeout=3)
            then = (await sandbox.run("echo on", timeout=SECONDS)).text
        except InfraError as error:
            then = str(error)
        assert then == "on\n" or then.startswith("sandbox "), then
        assert (await neighbour.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_host_services(runtime_server: Any, images: Any, opened: Any) -> None:
    """Neither the server's ports nor any socket of the host is there to be called."""
    port = urlsplit(runtime_server.url).port
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
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run(f"python3 -c '{program}'", timeout=SECONDS)
        assert done.text == "0 unix sockets\n"
        done = await sandbox.run(
            "find / -xdev -type s; find /run /tmp /var -type s", timeout=SECONDS
        )
        assert done.text == ""


async def test_setuid_programs_gain_nothing(images: Any, opened: Any) -> None:
    """Neither root's setuid copy nor the image's own setuid programs lift a plain user."""
    async with opened(images["debian"]) as sandbox:
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
    host_file: Path, images: Any, opened: Any, runtime_client: RuntimeClient
) -> None:
    """A link in the sandbox that spells a file of the host is a name inside the sandbox."""
    async with opened(images["debian"]) as sandbox:
        prepare = f"ln -s {host_file} /tmp/link; mkdir -p {host_file.parent}; ln -s / /tmp/root"
        assert (await sandbox.run(prepare, timeout=SECONDS)).exit_code == 0
        dots = "/tmp" + "/.." * 12 + str(host_file)
        for path in ("/tmp/link", str(host_file), f"/tmp/root{host_file}", dots):
            await sandbox.write(path, b"overwritten")
            assert await sandbox.read(path) == b"overwritten"
        assert (await sandbox.run(f"cat {host_file}", timeout=SECONDS)).text == "overwritten"
    assert _is_untouched(host_file)


async def test_own_key_opens_no_other_sandbox(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as one, opened(images["busybox"]) as other:
        one._url, other._url = other._url, one._url
        for sandbox in (one, other):
            with pytest.raises(InfraError, match="X-Session-API-Key is missing or wrong"):
                await sandbox.run("true", timeout=SECONDS)
