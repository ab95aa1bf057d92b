"""The user-space watchdog, on real processes and real disk."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff.runtime.backend import ContainerRequest, Limits
from skiff.runtime.podman_backend import PodmanBackend, PodmanContainer
from skiff.runtime.watchdog import GROWTH_BYTES, Watchdog, process_table, tree_bytes

CHILD = "import sys; block = bytearray(64 << 20); print('ready', flush=True); sys.stdin.read()"


class Watched:
    """A container whose processes and layer are given by the test."""

    def __init__(self, pid: int, *, memory_mib: int = 1 << 20, layer: int = 0) -> None:
        self.limits = Limits(
            memory_mib=memory_mib, cpus=1, pids=9, disk_mib=1, output_bytes=99, network=False
        )
        self.pid = pid
        self.layer = layer
        self.reasons: list[str] = []

    async def first_pid(self) -> int:
        return self.pid

    async def layer_bytes(self) -> int:
        return self.layer

    async def kill_all(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture
def shell_with_child() -> Iterator[int]:
    """The pid of a shell whose child holds 64 MiB."""
    process = subprocess.Popen(
        ["sh", "-c", '"$@"; true', "sh", sys.executable, "-c", CHILD],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    yield process.pid
    process.communicate()


def test_memory_is_summed_over_the_tree(shell_with_child: int) -> None:
    table = process_table()
    assert table[shell_with_child][0] == os.getpid()
    assert table[shell_with_child][1] < 32 << 20
    assert 64 << 20 <= tree_bytes(shell_with_child, table) < 160 << 20
    assert tree_bytes(2**30, table) == 0


async def test_memory_limit(shell_with_child: int, tmp_path: Path) -> None:
    above = Watched(shell_with_child, memory_mib=60)
    below = Watched(shell_with_child, memory_mib=600)
    await Watchdog(lambda: [above, below], tmp_path, memory=True).look()
    assert len(above.reasons) == 1
    assert "of its 60 MiB of memory" in above.reasons[0]
    assert below.reasons == []


async def test_layers_are_looked_at_only_when_the_disk_has_grown(tmp_path: Path) -> None:
    full = Watched(os.getpid(), layer=9 << 20)
    watchdog = Watchdog(lambda: [full], tmp_path, memory=False)
    with (tmp_path / "file").open("wb") as file:
        file.write(bytes(4 * GROWTH_BYTES))
        file.flush()
        os.fsync(file.fileno())
    await watchdog.look()
    assert full.reasons == ["the sandbox used 9 MiB of its 1 MiB of disk"]


async def test_container_without_memory_cgroup(busybox_image: str, tmp_path: Path) -> None:
    """As on a host that delegates no cgroups: only the watchdog stands between."""

    class Unlimited(PodmanBackend):
        def _cgroup_limits(self, request: ContainerRequest) -> dict[str, Any]:
            return {}

    backend = Unlimited("test-watchdog")
    await backend.open(known=())
    try:
        limits = Limits(
            memory_mib=48, cpus=1, pids=64, disk_mib=64, output_bytes=9999, network=False
        )
        request = ContainerRequest("skiff-test-watchdog", busybox_image, {}, limits)
        container: PodmanContainer = await backend.start(request)
        watchdog = asyncio.create_task(Watchdog(lambda: [container], tmp_path, memory=True).run())
        hog = "(head -c 100m /dev/zero; sleep 1000) | tail"
        done = await container.run(hog, timeout=60, cwd="/", stop=asyncio.Event())
        watchdog.cancel()
        assert done.exit_code == 137
        assert b"MiB of its 48 MiB of memory" in done.stderr
        done = await container.run("echo on", timeout=60, cwd="/", stop=asyncio.Event())
        assert (done.stdout, done.stderr) == (b"on\n", b"")
    finally:
        await backend.close()
