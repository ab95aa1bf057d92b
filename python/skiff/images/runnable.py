"""What `apptainer run` is given: the SIF itself where it can be mounted, else a folder.

Without setuid a SIF is mounted by FUSE. Where a user may not, Apptainer would unpack all of it
at every start; here that is done once per node and image. Not covered: eviction of such folders.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

from skiff.apptainer import apptainer_root, squashfs_tool
from skiff.errors import ConfigError, InfraError
from skiff.sif import root_offset

FUSE = Path("/dev/fuse")
UNPACK_SECONDS = 1800


def runnable(sif: Path) -> Path:
    """`sif`, or its file system in a folder of this node. Raises ConfigError, InfraError."""
    check_file(sif)
    return sif if os.access(FUSE, os.R_OK | os.W_OK) else _unpacked(sif)


def check_file(sif: Path) -> None:
    """Raises ConfigError when there is no such file, or none that we may read."""
    try:
        sif.open("rb").close()
    except OSError as error:
        raise ConfigError(
            f"cannot be read: {error.strerror}", where=f"images: {sif}", remedy="make build-sif"
        ) from None


def _unpacked(sif: Path) -> Path:
    found = sif.stat()
    name = f"{sif.absolute()} {found.st_size} {found.st_mtime_ns}"
    target = apptainer_root() / f"run-{hashlib.sha256(name.encode()).hexdigest()[:16]}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(prefix=".run-", dir=target.parent) as work:
        made = Path(work) / "root"  # moved out of this closed folder when it is whole
        command = [squashfs_tool("unsquashfs"), "-quiet", "-no-progress", "-no-xattrs"]
        options = ["-offset", str(root_offset(sif)), "-dest", str(made), str(sif)]
        done = subprocess.run(
            [*command, *options],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=UNPACK_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise InfraError(
                done.stderr.strip()[-500:],
                where=f"unpacking {sif.name}",
                remedy="set SKIFF_APPTAINER_ROOT to a folder with room on a local disk",
            )
        try:
            made.rename(target)
        except OSError:  # another launcher of this node was first
            if not target.exists():
                raise
    return target
