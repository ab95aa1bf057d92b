"""A root file system, unpacked where Apptainer can read all of it: in a user namespace.

Not covered: device files, which a namespace cannot make; Apptainer brings its own.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from skiff.apptainer import id_map, own, run_mapped, start_mapped
from skiff.errors import ImageError
from skiff.images.archive import Archive, Kind

UNPACK_SECONDS = 1800.0
_TAR = ("tar", "--numeric-owner", "--exclude=./dev/*", "--exclude=dev/*")
# How a compressed tar file begins -> tar's option; on a pipe it does not look itself.
_COMPRESSIONS = {b"\x1f\x8b": "--gzip", b"BZh": "--bzip2", b"\xfd7zXZ": "--xz"}


@contextlib.contextmanager
def unpacked(archive: Archive, work: Path) -> Iterator[Path]:
    """A folder below `work` with the content of a root file system; removed at the end.

    Raises ImageError when it cannot be read or would leave its folder.
    """
    place = work / "unpacked"
    root = place / "root"
    root.mkdir(parents=True)
    own(root)
    own(place)
    try:
        if archive.kind is Kind.ROOTFS:
            _copy(archive.path, root)
        else:
            with archive.path.open("rb") as file:
                head = file.read(8)
                file.seek(0)
                known = _COMPRESSIONS.items()
                options = [option for magic, option in known if head.startswith(magic)]
                _extract(file, root, options, archive.path)
        yield root
    finally:
        run_mapped(["sh", "-c", "chmod -R u+rwX .; rm -rf -- *"], cwd=place)


def _copy(source: Path, root: Path) -> None:
    command = [*_TAR, f"--directory={source}", "--create", "."]
    with tempfile.TemporaryFile() as errors:
        # A user's folder may hold subordinate ids; root's must be read as what they are.
        start = start_mapped if os.getuid() == id_map().root else subprocess.Popen
        with start(command, stdout=subprocess.PIPE, stderr=errors) as reader:
            assert reader.stdout is not None
            _extract(reader.stdout, root, [], source)
        if reader.returncode != 0:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()[-500:]
            raise ImageError(f"cannot be read: {words}", where=str(source))


def _extract(tar: IO[bytes], root: Path, options: list[str], told: Path) -> None:
    owner = "--no-same-owner" if id_map().single else "--same-owner"
    command = [*_TAR, *options, "--preserve-permissions", owner, f"--directory={root}", "--extract"]
    done = run_mapped(command, stdin=tar, timeout=UNPACK_SECONDS)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise ImageError(f"cannot be unpacked: {words}", where=str(told))
