"""What kind of image a file or folder holds, told by its content."""

from __future__ import annotations

import tarfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from skiff.errors import ImageError

_SIF_MAGIC = (32, b"SIF_MAGIC")  # offset and bytes: a SIF begins with a line that runs it
_ROOT_FOLDERS = frozenset({"bin", "etc", "lib", "sbin", "usr"})


class Kind(Enum):
    """The kinds that can be imported; the values are the prefixes of container engines."""

    DOCKER_ARCHIVE = "docker-archive"
    OCI_ARCHIVE = "oci-archive"
    OCI = "oci"
    ROOTFS_TAR = "rootfs-tar"
    ROOTFS = "rootfs"
    SIF = "sif"


@dataclass(frozen=True)
class Archive:
    """An image outside of any store. `path` is absolute."""

    kind: Kind
    path: Path

    @property
    def source(self) -> str:
        """As podman and Apptainer name it; not for root file systems and SIF files."""
        return f"{self.kind.value}:{self.path}"


def detect(path: Path) -> Archive:
    """Look what `path` holds: `docker save`'s or an OCI tar file (also compressed), an OCI layout
    folder, a root file system as tar file or folder, a SIF file. Raises ImageError."""
    path = path.absolute()
    try:
        kind = _folder_kind(path) if path.is_dir() else _file_kind(path)
    except (OSError, EOFError, tarfile.TarError) as error:
        raise ImageError(f"cannot be read: {error}", where=str(path)) from error
    if kind is None:
        raise ImageError(
            "holds no image",
            where=str(path),
            remedy="give a file of `docker save` or `podman save`, an OCI layout (file or folder), "
            "a root file system (tar file or folder) or a SIF file",
        )
    return Archive(kind, path)


def _folder_kind(path: Path) -> Kind | None:
    names = {entry.name for entry in path.iterdir()}
    if {"oci-layout", "index.json"} <= names:
        return Kind.OCI
    return Kind.ROOTFS if names & _ROOT_FOLDERS else None


def _file_kind(path: Path) -> Kind | None:
    offset, magic = _SIF_MAGIC
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(len(magic)) == magic:
            return Kind.SIF
    oci = False
    with tarfile.open(path) as archive:
        for member in archive:
            name = member.name.removeprefix("./").removeprefix("/")
            if name.partition("/")[0] in _ROOT_FOLDERS:
                return Kind.ROOTFS_TAR
            if name == "manifest.json":  # newer docker writes both; this one holds the names
                return Kind.DOCKER_ARCHIVE
            oci = oci or name == "oci-layout"
    return Kind.OCI_ARCHIVE if oci else None
