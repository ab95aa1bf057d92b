"""Which file system a folder lies on, and whether it is a network file system."""

from __future__ import annotations

from pathlib import Path

from skiff.errors import InfraError

NETWORK = (
    *("9p", "afs", "beegfs", "ceph", "cifs", "fuse.ceph", "fuse.glusterfs", "fuse.sshfs", "gpfs"),
    *("lustre", "nfs", "nfs4", "orangefs", "panfs", "smb3", "wekafs"),
)
MOUNTS = Path("/proc/self/mountinfo")  # its format: proc(5)


def check_local(folder: Path, *, remedy: str) -> None:
    """Raise InfraError when `folder`, which exists, lies on a network file system.

    Overlay mounts, sockets and locks, which container engines need, do not work there.
    """
    kind = filesystem(folder)
    if kind in NETWORK:
        raise InfraError(f"lies on {kind}, not on a local disk", where=str(folder), remedy=remedy)


def filesystem(path: Path, mounts: Path | None = None) -> str:
    """The type of the file system of `path`, as in the table `mounts` (default MOUNTS)."""
    found = {Path("/"): "unknown"}
    for line in (mounts or MOUNTS).read_text().splitlines():
        before, _, after = line.partition(" - ")
        point = before.split(" ")[4].encode().decode("unicode_escape")  # a blank is \040
        found[Path(point)] = after.split(" ")[0]  # the last mount on a point hides the others
    real = path.resolve()
    return next(found[folder] for folder in (real, *real.parents) if folder in found)
