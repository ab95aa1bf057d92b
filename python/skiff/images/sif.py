"""Making a SIF file whose bytes depend on its content alone.

Apptainer's own commands put it together; what they draw at random or take from the clock and the
caller (identity, times, ids of the user) is then set here. Not covered: images for anything but
amd64, encryption.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tempfile
import uuid
from collections.abc import Mapping
from pathlib import Path

from skiff.apptainer import check_sif
from skiff.sif import PRIMARY, ObjectType, descriptors

DEFINITION = "definition"
LABELS = "labels.json"
ROOT = "root"
# Apptainer looks for this very name before it starts the image to ask it (`inspect_tree`).
INSPECT = "inspect-metadata.json"
ADD_SECONDS = 3600.0
_LAUNCH = b"#!/usr/bin/env run-singularity\n\0"  # makes the file itself a program
_IDENTITY = 48  # offset in the header
_DESCRIPTOR_TIMES = 41  # offset in a descriptor of created, modified, uid and gid
_GROUP = "1"  # what one signature covers; objects without a group would be left out


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
        primary = [f"--datatype={_short(ObjectType.PARTITION)}", f"--parttype={PRIMARY}"]
        _add(made, squashfs, ROOT, [*primary, "--partfs=1", "--partarch=2"])
        set_times(made, epoch)
        _set_identity(made)
        made.chmod(0o755)
        made.replace(target)


def set_times(sif: Path, epoch: int) -> None:
    """Let a SIF file and its objects be made at `epoch` by nobody; no signature covers that."""
    with sif.open("r+b") as file:
        for place, raw in descriptors(file, sif):
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
