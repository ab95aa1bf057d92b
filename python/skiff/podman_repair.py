"""A damaged store of podman is made usable again, before anything is started in it.

What podman itself names repairable is repaired in its way: a lost pause process and containers of
an older podman by `system migrate`, leftovers of an earlier boot by removing them. A database of
containers that cannot be read is set aside: images and layers are kept, its containers are lost,
and their processes are ended. All containers of this store are Skiff's own.

Not covered: damaged images and layers; they are reported with a remedy.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from skiff.errors import InfraError

DATABASES = ("libpod/bolt_state.db", "db.sql")  # podman 4; podman 5
# Words of podman and of its database libraries.
MIGRATE = ("podman system migrate", "invalid internal status", "pause process")
OTHER_BOOT = ("boot ID differs",)
DAMAGED = (
    "opening database",
    "bbolt",
    "invalid database",
    "database disk image is malformed",
    "file is not a database",
    "database configuration mismatch",
)

log = logging.getLogger("skiff.podman")

Podman = Callable[[Sequence[str]], subprocess.CompletedProcess[bytes]]


def repair_store(podman: Podman, storage: Path, run_dir: Path) -> None:
    """Read the store's containers; if that fails, repair it. Raises InfraError when it stays so.

    podman   runs podman with arguments, to its end
    storage  folder of images, layers and the database
    run_dir  folder of podman's sockets, locks and mounts
    """
    if not _complaint(podman):
        return
    with _only_one(storage):
        for marks, cure in (
            (MIGRATE, lambda: podman(["system", "migrate"])),
            (OTHER_BOOT, lambda: _remove_run_state(run_dir)),
            (DAMAGED, lambda: _set_database_aside(podman, storage, run_dir)),
        ):
            words = _complaint(podman)
            if any(mark in words for mark in marks):
                log.warning(
                    "the podman store %s is damaged and is being repaired: %s", storage, words[:200]
                )
                cure()
        if words := _complaint(podman):
            raise InfraError(
                words,
                where=f"podman store {storage}",
                remedy="end its containers and remove that folder; its images must be made again",
            )


def _complaint(podman: Podman) -> str:
    """podman's words when it cannot list its containers; of a crash the first ones."""
    done = podman(["ps", "--all", "--quiet"])
    if done.returncode == 0:
        return ""
    words = done.stderr.decode(errors="replace").strip()
    return words.removeprefix("Error: ") or f"exit status {done.returncode}"


def _remove_run_state(run_dir: Path) -> None:
    """What podman remembers of containers that cannot run any more."""
    for name in ("libpod", "containers"):
        shutil.rmtree(run_dir / name, ignore_errors=True)


def _set_database_aside(podman: Podman, storage: Path, run_dir: Path) -> None:
    _end_containers(run_dir)
    for name in DATABASES:
        path = storage / name
        if path.exists():
            aside = path.with_name(f"{path.name}.damaged-{time.strftime('%Y%m%dT%H%M%S')}")
            path.rename(aside)
            log.warning("the database of podman's containers is now %s", aside)
    left = podman(["ps", "--all", "--quiet", "--external"])
    if ids := left.stdout.decode().split():
        podman(["rm", "--force", *ids])


def _end_containers(run_dir: Path) -> None:
    """Kill the containers that the database does not tell of, by what their monitors have noted.

    Without its monitor a sandbox also ends by itself: its stdin is closed.
    """
    for folder in (run_dir / "containers" / "overlay-containers").glob("*/userdata"):
        monitor, first = _pid(folder / "conmon.pid"), _pid(folder / "pidfile")
        container = folder.parent.name
        if container not in _read(Path("/proc", str(monitor), "cmdline")):
            continue  # it has ended, or the pid is another process's now
        if f"\nPPid:\t{monitor}\n" in _read(Path("/proc", str(first), "status")):
            _kill(first)
        _kill(monitor)


def _kill(pid: int) -> None:
    # A process of a mapped id is not ours to kill; it ends with its stdin.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _pid(path: Path) -> int:
    return int(_read(path) or 0)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return ""


@contextlib.contextmanager
def _only_one(storage: Path) -> Iterator[None]:
    """One process at a time repairs; the others then find the store repaired."""
    with (storage.parent / "repair.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
