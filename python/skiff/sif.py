"""Reading SIF files: which objects one holds. images/sif.py makes them.

The format (github.com/apptainer/sif, version 1): a header of 128 bytes, a table of descriptors, the
objects. Not covered: files of big-endian machines, encrypted partitions, objects of OCI images.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from skiff.errors import ImageError

PRIMARY = 2  # the purpose of the partition that is the image's file system
_MAGIC = b"SIF_MAGIC\0"
# launch script, magic, version, architecture, identity, created, modified, then free and total
# number of descriptors, offset and size of their table, offset and size of the data
_HEADER = struct.Struct("<32s10s3s3s16s8q")
# type, used, number, group, link, offset, size, padded size, created, modified, uid, gid, name
# and what the type needs
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_PARTITION = struct.Struct("<ii3s")  # file system, purpose, architecture; how the rest begins
_NO_GROUP = 0xF0000000


class ObjectType(IntEnum):
    """What an object is; the values are those of the format, of which there are more."""

    DEFINITION = 0x4001
    LABELS = 0x4003
    PARTITION = 0x4004
    SIGNATURE = 0x4005
    JSON = 0x4006
    GENERIC = 0x4007
    SBOM = 0x4009


@dataclass(frozen=True)
class SifObject:
    """One object of a SIF file.

    type        an `ObjectType`, or a value that Skiff does not know
    group       which signature covers it; 0: none
    offset      of its first byte in the file
    size        in bytes
    is_root     True for the partition that is the image's file system
    """

    number: int
    type: int
    group: int
    offset: int
    size: int
    name: str
    is_root: bool


def read_objects(sif: Path) -> list[SifObject]:
    """The objects of a SIF file, in the order of their descriptors. Raises ImageError."""
    try:
        with sif.open("rb") as file:
            return [_object(raw) for _, raw in descriptors(file, sif)]
    except OSError as error:
        raise ImageError(f"cannot be read: {error.strerror}", where=str(sif)) from error


def read_object(sif: Path, name: str) -> bytes:
    """The content of the object `name`. Raises ImageError when the file has none of that name."""
    for found in read_objects(sif):
        if found.name == name:
            with sif.open("rb") as file:
                file.seek(found.offset)
                return file.read(found.size)
    raise ImageError(
        f"holds no {name}",
        where=str(sif),
        remedy="build the image with `make build-sif`; those of other makers hold less",
    )


def root_offset(sif: Path) -> int:
    """Where the squashfs of the image begins, in bytes. Raises ImageError when there is none."""
    for found in read_objects(sif):
        if found.is_root:
            return found.offset
    raise ImageError("holds no file system", where=str(sif))


def image_time(sif: Path) -> int:
    """When a SIF file says it was made, in seconds since 1970. Raises ImageError."""
    with sif.open("rb") as file:
        return int(_HEADER.unpack(_head(file, sif))[5])


def _head(file: BinaryIO, told: Path) -> bytes:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[32:42] != _MAGIC:
        raise ImageError("is no SIF file", where=str(told))
    return head


def descriptors(file: BinaryIO, told: Path) -> list[tuple[int, bytes]]:
    """(offset in the file, bytes) of each descriptor in use."""
    total, start = _HEADER.unpack(_head(file, told))[8:10]
    file.seek(start)
    table = [(start + n * _DESCRIPTOR.size, file.read(_DESCRIPTOR.size)) for n in range(total)]
    if any(len(raw) < _DESCRIPTOR.size for _, raw in table):
        raise ImageError("is cut off", where=str(told), remedy="copy or build it again")
    return [(place, raw) for place, raw in table if _DESCRIPTOR.unpack(raw)[1]]


def _object(raw: bytes) -> SifObject:
    kind, _, number, group, _, offset, size, *_, name, rest = _DESCRIPTOR.unpack(raw)
    purpose = _PARTITION.unpack_from(rest)[1]
    return SifObject(
        number=number,
        type=kind,
        group=group & ~_NO_GROUP,
        offset=offset,
        size=size,
        name=name.partition(b"\0")[0].decode(errors="replace"),
        is_root=kind == ObjectType.PARTITION and purpose == PRIMARY,
    )
