"""Root folders of images for the Apptainer back end: each image is unpacked once per node.

A folder on the local disk is shared by all sandboxes of an image (pages of its files as well), and
an overlay upon it needs neither FUSE nor a daemon. What belongs to the image's root belongs to the
root of our user namespaces.

An image is a SIF or a root folder: a path, or a name that stands for a file of the SIF cache (see
`skiff.image_use`) or for a folder in it. Snapshots are folders here, found by their name only.

When the disk is nearly full, those go that were not used for the longest time and of which no
sandbox is left. Not covered: device files of an image; removal of snapshots.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import re
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from skiff.apptainer import check_mapped, id_map, own, run_mapped, start_mapped, unpack_sif
from skiff.errors import InfraError
from skiff.image_use import file_name, full_name, mark_used, sif_path
from skiff.runtime.backend import ImageInfo, ImageNotFoundError

UNPACK_SECONDS = 1800.0
FREE_SHARE = 0.1  # of the disk, that is made free before an image is unpacked
REST_SECONDS = 600.0  # what was used since then stays: a sandbox may be about to start from it
_SNAPSHOT, _USED, _SCRATCH = ".snapshot", ".used", ".unpack-"
# A namespace can make no device files; the kernel's own folders come from elsewhere.
_TAR = ("tar", "--numeric-owner", "--exclude=./dev/*", "--exclude=./proc/*", "--exclude=./sys/*")
# Apptainer mounts on these and cannot make them. $1: the root folder.
_COMPLETE = 'chmod u+rwx -- "$1" && cd -- "$1" && mkdir -p dev etc proc tmp'
# $1 and $2: lower and upper folder of a sandbox.
_MERGE = """mkdir merged root &&
mount -t overlay -o "ro,userxattr,lowerdir=$2:$1" overlay merged && cp -a merged/. root/"""

log = logging.getLogger("skiff.runtime")


class RootFolders:
    """The unpacked images below `store`, which is this node's; `sources` may be shared."""

    def __init__(self, store: Path, sources: Path) -> None:
        self._store = store
        self._sources = sources
        self._locks: dict[str, asyncio.Lock] = {}

    async def find(self, name: str) -> Path:
        """The root folder of an image, unpacked if need be. Raises ImageNotFoundError."""
        snapshot = self.snapshot(name)
        if snapshot.exists():
            return snapshot
        source = self._source(name)
        if not name.startswith("/"):
            with contextlib.suppress(OSError):  # whoever may only read the folder does not prune it
                mark_used(self._sources, name)
        found = source.stat()
        folder = self._store / _key(f"{source}:{found.st_size}:{found.st_mtime_ns}", source.name)
        async with self._locks.setdefault(folder.name, asyncio.Lock()):
            folder.with_name(folder.name + _USED).touch()
            if not folder.exists():
                await asyncio.to_thread(self._make_room)
                await asyncio.to_thread(_unpack, source, folder)
        return folder

    async def info(self, name: str) -> ImageInfo | None:
        """What is known about an image; None when there is none of that name."""
        snapshot = self.snapshot(name)
        try:
            source = snapshot if snapshot.exists() else self._source(name)
        except ImageNotFoundError:
            return None
        found = source.stat()
        size = found.st_size if source.is_file() else await asyncio.to_thread(disk_bytes, source)
        return ImageInfo(name, size, found.st_mtime)

    def snapshot(self, name: str) -> Path:
        """Where the snapshot of that name is or will be."""
        return self._store / (_key(name, name) + _SNAPSHOT)

    def sweep(self) -> None:
        """Remove what killed servers have left half done."""
        for folder in self._store.glob(f"{_SCRATCH}*"):
            pid = folder.name.removeprefix(_SCRATCH).partition("-")[0]
            if not Path("/proc", pid).exists():
                _remove(folder)

    def _make_room(self) -> None:
        """Remove unused root folders while less than FREE_SHARE of the disk is free."""
        marks = sorted(self._store.glob(f"*{_USED}"), key=lambda mark: mark.stat().st_mtime)
        for mark in marks:
            free = os.statvfs(self._store)
            if free.f_bavail >= FREE_SHARE * free.f_blocks:
                return
            folder = mark.with_name(mark.name.removesuffix(_USED))
            in_use = {link.resolve() for link in self._store.parent.glob("sandboxes/*/*/image")}
            rested = time.time() - mark.stat().st_mtime > REST_SECONDS
            if folder in in_use or not rested or not folder.exists():
                continue
            log.info("removing the unpacked image %s: the disk is nearly full", folder.name)
            # At one stroke, so that nobody takes it for whole.
            scratch = _scratch(self._store)
            folder.rename(scratch / "root")
            mark.unlink()
            _remove(scratch)

    def _source(self, name: str) -> Path:
        choices = [sif_path(self._sources, name), self._sources / file_name(full_name(name))]
        if name.startswith("/"):
            choices = [Path(name)]
        for path in choices:
            if path.is_file() or (path / "bin").is_dir():
                return path.resolve()
        raise ImageNotFoundError(name)


def disk_bytes(folder: Path) -> int:
    """What the files below `folder` occupy."""
    done = run_mapped(["du", "--summarize", "--block-size=1", "."], cwd=folder)
    if not done.stdout:  # it fails, too, when a file goes while it looks
        raise InfraError(done.stderr.decode(errors="replace").strip(), where=f"du {folder}")
    return int(done.stdout.split()[0])


def keep_snapshot(lower: Path, upper: Path, target: Path) -> None:
    """Make the root folder `target` of what a sandbox sees. Its processes must stand still."""

    def fill(scratch: Path) -> None:
        # Relative: a path may hold what means something to mount.
        layers = [os.path.relpath(lower, scratch), os.path.relpath(upper, scratch)]
        command = ["unshare", "--mount", "sh", "-c", _MERGE, "sh", *layers]
        check_mapped(command, cwd=scratch, timeout=UNPACK_SECONDS)

    _make(target, fill)


def _unpack(source: Path, target: Path) -> None:
    if source.is_file():
        _make(target, lambda scratch: unpack_sif(source, scratch / "root"))
    else:
        _make(target, lambda scratch: _copy(source, scratch))


def _make(target: Path, fill: Callable[[Path], None]) -> None:
    """Make the folder `target` whole or not at all: `fill` makes `root` in a scratch folder."""
    scratch = _scratch(target.parent)
    try:
        fill(scratch)
        check_mapped(["sh", "-c", _COMPLETE, "sh", "root"], cwd=scratch)
        try:
            (scratch / "root").rename(target)
        except OSError:
            if not target.exists():  # else another server was quicker
                raise
    finally:
        _remove(scratch)


def _scratch(store: Path) -> Path:
    """A new folder that the namespace's root can fill, known as ours by its name."""
    folder = Path(tempfile.mkdtemp(prefix=f"{_SCRATCH}{os.getpid()}-", dir=store))
    own(folder)
    return folder


def _remove(scratch: Path) -> None:
    """Remove a scratch folder, whatever ids own what is in it."""
    check_mapped(["find", ".", "-mindepth", "1", "-delete"], cwd=scratch)
    scratch.rmdir()


def _copy(source: Path, scratch: Path) -> None:
    """Copy a root folder to scratch/root; ids become ids of the namespace, where it has them."""
    reader = [*_TAR, "-C", str(source), "-cf", "-", "."]
    owner = "--no-same-owner" if id_map().single else "--same-owner"
    writer = [*_TAR, "--preserve-permissions", owner, "-C", "root", "-xf", "-"]
    (scratch / "root").mkdir()
    own(scratch / "root")
    with tempfile.TemporaryFile() as errors:
        # A user's folder may hold subordinate ids; root's must be read as what they are.
        if os.getuid() == id_map().root:
            reading = start_mapped(reader, stdout=subprocess.PIPE, stderr=errors)
        else:
            reading = subprocess.Popen(reader, stdout=subprocess.PIPE, stderr=errors)
        with reading:
            check_mapped(writer, cwd=scratch, stdin=reading.stdout or 0, timeout=UNPACK_SECONDS)
        if reading.returncode != 0:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()[-500:]
            raise InfraError(f"cannot be read: {words}", where=str(source))


def _key(identity: str, name: str) -> str:
    """A folder's name: readable, and without what means something to a shell or to mount."""
    digest = hashlib.sha256(identity.encode()).hexdigest()[:12]
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-60:].lstrip(".") + "-" + digest
