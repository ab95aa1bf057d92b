"""Folders that say in their name which process they belong to, so that a dead one's can be removed.

A process is known by the boot of its machine, its pid namespace, its pid and its start time; a host
name or a pid alone comes back after a reboot.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

REMOTE_SECONDS = 86_400.0  # another machine's folder is left over when untouched for so long
_numbers = itertools.count()


@dataclass(frozen=True)
class Owner:
    """A process, and what it owns.

    machine  the boot and the pid namespace in which `pid` means something
    start    when it started, in clock ticks after the boot
    number   tells apart what one process owns
    """

    host: str
    machine: str
    pid: int
    start: int
    number: int

    @classmethod
    def current(cls) -> Self:
        """This process, with a number that it has not had before."""
        pid = os.getpid()
        start = _start(pid)
        assert start is not None
        return cls(socket.gethostname(), _machine(), pid, start, next(_numbers))

    @classmethod
    def parse(cls, text: str) -> Self:
        """What `str` made. Raises ValueError."""
        host, machine, pid, start, number = text.rsplit("~", 4)
        return cls(host, machine, int(pid), int(start), int(number))

    def __str__(self) -> str:
        return f"{self.host}~{self.machine}~{self.pid}~{self.start}~{self.number}"

    @property
    def alive(self) -> bool | None:
        """Whether the process lives; None on another machine, where we cannot look."""
        if self.machine != _machine():
            return None
        return _start(self.pid) == self.start


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A new folder below `folder`, removed at the end. First, dead processes' are removed."""
    folder.mkdir(parents=True, exist_ok=True)
    sweep(folder)
    path = folder / str(Owner.current())
    path.mkdir()
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def sweep(folder: Path) -> None:
    """Remove the folders of dead processes below `folder`; what has no owner's name stays."""
    for path in folder.iterdir():
        try:
            alive = Owner.parse(path.name).alive
            if alive is None:
                alive = time.time() - path.stat().st_mtime < REMOTE_SECONDS
        except (ValueError, FileNotFoundError):
            continue
        if not alive:
            shutil.rmtree(path, ignore_errors=True)


def _machine() -> str:
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    namespace = Path("/proc/self/ns/pid").readlink().name.strip("pid:[]")
    return f"{boot}.{namespace}"


def _start(pid: int) -> int | None:
    """The start time of a living process; None when there is none, or only its zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else int(fields[19])
