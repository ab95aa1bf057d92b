"""A lock between processes, also of several nodes: a folder on their shared file system.

flock(2) is missing or local on many shared file systems; mkdir, rename and unlink are not. A lock
is a folder that holds one file, named after its owner. Each step is one call that only one process
can win: it is taken by renaming a prepared folder to its place, which fails unless the place is
free or an empty folder; given back, or broken, by unlinking that very owner's file.

On the owner's machine a lock is broken when the owner's process is gone, and never before. The
owner renews the file's modification time; another machine breaks the lock after watching no renewal
for `STALE_SECONDS` of its own clock, so that clocks need not agree.
Not covered: an owner that is frozen for that long while another machine waits. It then goes on
without the lock: what it guards here is renamed into place whole, so work is done twice at worst.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from skiff.errors import InfraError
from skiff.images.owner import Owner, sweep

RENEW_SECONDS = 10.0
STALE_SECONDS = 120.0
LOOK_SECONDS = 0.2
_TAKEN = (errno.ENOTEMPTY, errno.EEXIST)


@dataclass(frozen=True)
class _Sight:
    """A lock's owner as last seen. `since` is when `renewed` was first seen, in our own clock."""

    owner: Owner
    renewed: int
    since: float


@contextlib.contextmanager
def locked(
    path: Path,
    *,
    check: Callable[[], None] = lambda: None,
    stale_seconds: float = STALE_SECONDS,
) -> Iterator[None]:
    """Hold the lock `path` (a folder to be; its parent is made). Waits as long as its owner lives.

    `check` is called while waiting, and ends it by raising. Raises InfraError when the place is
    taken by something that is no lock.
    """
    waiting_room = path.parent / "waiting"
    waiting_room.mkdir(parents=True, exist_ok=True)
    owner = Owner.current()
    _take(path, waiting_room, owner, check, stale_seconds)
    file = path / str(owner)
    end = threading.Event()
    renewal = threading.Thread(target=_renew, args=(file, end), daemon=True)
    renewal.start()
    try:
        yield
    finally:
        end.set()
        renewal.join()
        _give_back(path, file)


def _take(
    path: Path,
    waiting_room: Path,
    owner: Owner,
    check: Callable[[], None],
    stale_seconds: float,
) -> None:
    sweep(waiting_room)
    prepared = waiting_room / str(owner)
    prepared.mkdir()
    (prepared / str(owner)).touch()
    seen: _Sight | None = None
    try:
        while not _rename(prepared, path):
            check()
            seen = _look(path, seen)
            if seen is not None and _stale(seen, stale_seconds):
                (path / str(seen.owner)).unlink(missing_ok=True)
            else:
                time.sleep(LOOK_SECONDS)
    except BaseException:
        shutil.rmtree(prepared, ignore_errors=True)
        raise


def _rename(prepared: Path, path: Path) -> bool:
    """Whether the prepared folder now stands at `path`."""
    try:
        prepared.rename(path)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        if error.errno == errno.ENOENT and (path / prepared.name).exists():
            return True  # NFS: it was done, and the answer to the first request was lost
        raise InfraError(f"cannot be taken: {error.strerror}", where=str(path)) from error
    return True


def _look(path: Path, before: _Sight | None) -> _Sight | None:
    """The owner and its last renewal; None when it has just gone."""
    try:
        # NFS keeps a removed file that is still open, as .nfs*.
        file = next((file for file in path.iterdir() if not file.name.startswith(".")), None)
        if file is None:
            return None
        found = _Sight(Owner.parse(file.name), file.stat().st_mtime_ns, time.monotonic())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InfraError(
            f"holds {file}, which no owner of a lock writes",
            where=str(path),
            remedy="remove it if no other program uses it",
        ) from error
    same = before and (before.owner, before.renewed) == (found.owner, found.renewed)
    return before if same else found


def _stale(seen: _Sight, stale_seconds: float) -> bool:
    alive = seen.owner.alive
    if alive is None:
        return time.monotonic() - seen.since > stale_seconds
    return not alive


def _renew(file: Path, end: threading.Event) -> None:
    while not end.wait(RENEW_SECONDS):
        with contextlib.suppress(FileNotFoundError):  # broken while we were frozen
            os.utime(file)


def _give_back(path: Path, file: Path) -> None:
    file.unlink(missing_ok=True)
    try:
        path.rmdir()
    except OSError as error:
        if error.errno not in (*_TAKEN, errno.ENOENT):  # the next owner may be there already
            raise
