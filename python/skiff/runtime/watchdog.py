"""Memory and disk limits where the kernel does not hold them: look once a second, end the culprit.

Disk (the container's own layer) is watched everywhere, memory only without memory cgroups. All
processes of a sandbox but the first are killed, and the running command reports why; the sandbox
goes on. Between two looks a sandbox can pass its limit: RLIMIT_FSIZE bounds a single file.

Memory is the sum of RssAnon and RssShmem over the tree, so pages shared after a fork count twice.
Sizes of the layers are asked for only when the store's file system has grown, since each costs the
engine tens of milliseconds; where the store is not seen (a bound service), every BLIND_SECONDS.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Protocol

from skiff.errors import InfraError
from skiff.runtime.backend import Limits

LOOK_SECONDS = 1.0
BLIND_SECONDS = 30.0
GROWTH_BYTES = 16 << 20  # of the store's file system, that makes us look at each layer

log = logging.getLogger("skiff.runtime")


class Watched(Protocol):
    """A container as the watchdog sees it."""

    @property
    def limits(self) -> Limits: ...

    async def first_pid(self) -> int:
        """The first process, as a pid of the host."""
        ...

    async def layer_bytes(self) -> int:
        """What the container has written."""
        ...

    async def kill_all(self, reason: str) -> None: ...


class Watchdog:
    """Looks after `containers()` until cancelled. `store` is a folder of the layers' disk; None:
    it cannot be seen from here."""

    def __init__(
        self, containers: Callable[[], Iterable[Watched]], store: Path | None, *, memory: bool
    ) -> None:
        self._containers = containers
        self._store = store
        self._memory = memory
        self._used = 0 if store is None else _used_bytes(store)
        self._looked = time.monotonic()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            await self.look()

    async def look(self) -> None:
        """One look at every container."""
        grown = self._may_have_grown()
        if not (grown or self._memory):
            return
        table = process_table() if self._memory else {}
        for container in list(self._containers()):
            try:
                if self._memory:
                    await _check_memory(container, table)
                if grown:
                    await _check_disk(container)
            except InfraError as error:  # it has just ended, or podman has: others will say so
                log.info("watchdog: %s", error)

    def _may_have_grown(self) -> bool:
        if self._store is None:
            due = time.monotonic() - self._looked > BLIND_SECONDS
            if due:
                self._looked = time.monotonic()
            return due
        used = _used_bytes(self._store)
        grown = used - self._used > GROWTH_BYTES
        self._used = used if grown else min(used, self._used)
        return grown


async def _check_memory(container: Watched, table: Mapping[int, tuple[int, int]]) -> None:
    used = tree_bytes(await container.first_pid(), table) >> 20
    limit = container.limits.memory_mib
    if used > limit:
        await container.kill_all(f"the sandbox used {used} MiB of its {limit} MiB of memory")


async def _check_disk(container: Watched) -> None:
    used = await container.layer_bytes() >> 20
    limit = container.limits.disk_mib
    if used > limit:
        await container.kill_all(f"the sandbox used {used} MiB of its {limit} MiB of disk")


def process_table() -> dict[int, tuple[int, int]]:
    """pid -> (parent, resident bytes) of every process of this host."""
    table = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                status = (folder / "status").read_text(errors="replace")
            except (FileNotFoundError, ProcessLookupError):
                continue  # it has ended
            table[int(folder.name)] = _parent_and_bytes(status)
    return table


def tree_bytes(root: int, table: Mapping[int, tuple[int, int]]) -> int:
    """Resident bytes of `root` and all its descendants; 0 when it is not in the table."""
    children: dict[int, list[int]] = {}
    for pid, (parent, _) in table.items():
        children.setdefault(parent, []).append(pid)
    total, waiting = 0, [root] if root in table else []
    while waiting:
        pid = waiting.pop()
        total += table[pid][1]
        waiting += children.get(pid, ())
    return total


def _parent_and_bytes(status: str) -> tuple[int, int]:
    parent, kib = 0, 0
    for line in status.splitlines():
        key, _, value = line.partition(":")
        if key == "PPid":
            parent = int(value)
        elif key in ("RssAnon", "RssShmem"):
            kib += int(value.split()[0])
    return parent, kib << 10


def _used_bytes(folder: Path) -> int:
    found = os.statvfs(folder)
    return (found.f_blocks - found.f_bfree) * found.f_frsize
