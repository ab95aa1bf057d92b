"""SIF files: which objects one holds, and making one whose bytes depend on its content alone.

The format (github.com/apptainer/sif, version 1): a header of 128 bytes, a table of descriptors, the
objects. Apptainer's own commands put a file together; what they draw at random or take from the
clock and the caller (identity, times, ids of the user) is then set here.
Not covered: files of big-endian machines, encrypted partitions, objects of OCI images.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import BinaryIO

from skiff.apptainer import check_sif
from skiff.errors import ImageError

DEFINITION = "definition"
LABELS = "labels.json"
ROOT = "root"
# Apptainer looks for this very name before it starts the image to ask it (`inspect_tree`).
INSPECT = "inspect-metadata.json"
ADD_SECONDS = 3600.0
_MAGIC = b"SIF_MAGIC\0"
_LAUNCH = b"#!/usr/bin/env run-singularity\n\0"  # makes the file itself a program
# launch script, magic, version, architecture, identity, created, modified, then free and total
# number of descriptors, offset and size of their table, offset and size of the data
_HEADER = struct.Struct("<32s10s3s3s16s8q")
_IDENTITY = 48  # offset
# type, used, number, group, link, offset, size, padded size, created, modified, uid, gid, name
# and what the type needs
_DESCRIPTOR = struct.Struct("<i?IIIqqqqqqq128s384s")
_DESCRIPTOR_TIMES = 41  # offset of created, modified, uid and gid
_PARTITION = struct.Struct("<ii3s")  # file system, purpose, architecture; how the rest begins
_PRIMARY = 2
_GROUP = "1"  # what one signature covers; objects without a group would be left out
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
            return [_object(raw) for _, raw in _descriptors(file, sif)]
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


def assemble(
    squashfs: Path,
    target: Path,
    *,
    definition: bytes,
    labels: Mapping[str, str],
    epoch: int,
    extra: Mapping[str, bytes],
) -> None:
    """Make the SIF `target` of a squashfs for amd64; the same input gives the same bytes.

    `extra` are objects by name: *.cdx.json is kept as an SBOM, other *.json as JSON. `epoch` is
    what it says as its time, in seconds since 1970. Raises InfraError; `target` then is as it was.
    """
    json_labels = json.dumps(labels, indent=2, sort_keys=True).encode() + b"\n"
    with tempfile.TemporaryDirectory(prefix=".sif-", dir=target.parent) as name:
        made, part = Path(name, "made.sif"), Path(name, "part")
        check_sif(["sif", "new", str(made)])
        for called, content in {DEFINITION: definition, LABELS: json_labels, **extra}.items():
            part.write_bytes(content)
            _add(made, part, called, _options(called))
        # Last: it is aligned to pages, and what is small can be read from the file's first ones.
        primary = [f"--datatype={_short(ObjectType.PARTITION)}", f"--parttype={_PRIMARY}"]
        _add(made, squashfs, ROOT, [*primary, "--partfs=1", "--partarch=2"])
        set_times(made, epoch)
        _set_identity(made)
        made.chmod(0o755)
        made.replace(target)


def set_times(sif: Path, epoch: int) -> None:
    """Let a SIF file and its objects be made at `epoch` by nobody; no signature covers that."""
    with sif.open("r+b") as file:
        for place, raw in _descriptors(file, sif):
            times = struct.pack("<4q", epoch, epoch, 0, 0)
            file.seek(place)
            file.write(raw[:_DESCRIPTOR_TIMES] + times + raw[_DESCRIPTOR_TIMES + len(times) :])
        file.seek(_IDENTITY + 16)
        file.write(struct.pack("<2q", epoch, epoch))


def _set_identity(sif: Path) -> None:
    """Derive the identity, a UUID, from all that the file holds otherwise."""
    with sif.open("r+b") as file:
        file.write(_LAUNCH)
        file.seek(_IDENTITY)
        file.write(bytes(16))
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").digest()
        file.seek(_IDENTITY)
        file.write(uuid.UUID(bytes=digest[:16], version=5).bytes)


def _options(name: str) -> list[str]:
    if name == DEFINITION:
        kind = ObjectType.DEFINITION
    elif name == LABELS:
        kind = ObjectType.LABELS
    elif name.endswith(".cdx.json"):
        return [f"--datatype={_short(ObjectType.SBOM)}", "--sbomformat=cyclonedx-json"]
    else:
        kind = ObjectType.JSON if name.endswith(".json") else ObjectType.GENERIC
    return [f"--datatype={_short(kind)}"]


def _short(kind: ObjectType) -> int:
    """As the command line counts the types."""
    return kind & 0xFF


def _add(sif: Path, part: Path, name: str, options: list[str]) -> None:
    command = ["sif", "add", f"--filename={name}", f"--groupid={_GROUP}", *options]
    check_sif([*command, str(sif), str(part)], timeout=ADD_SECONDS)


def _head(file: BinaryIO, told: Path) -> bytes:
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[32:42] != _MAGIC:
        raise ImageError("is no SIF file", where=str(told))
    return head


def _descriptors(file: BinaryIO, told: Path) -> list[tuple[int, bytes]]:
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
        is_root=kind == ObjectType.PARTITION and purpose == _PRIMARY,
    )
