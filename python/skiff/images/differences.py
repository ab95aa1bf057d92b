"""In which files two images differ, of unpacked trees and SIF files alike.

A SIF is read as one stream of unsquashfs' pseudo file (squashfs-tools 4.5 or newer): a line for
every file, then the content of all of them. Nothing is unpacked or mounted.
Not covered: owners (the images have one), extended attributes (they have none), signatures.
"""

from __future__ import annotations

import hashlib
import re
import stat
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from skiff.apptainer import squashfs_tool
from skiff.errors import InfraError
from skiff.sif import ObjectType, read_object, read_objects, root_offset

_START_OF_DATA = b"# START OF DATA - DO NOT MODIFY\n"
_PIECE = 1 << 20
# Types of a pseudo file's lines -> what we call them.
_KINDS = {"D": "folder", "S": "link", "B": "device", "C": "device", "I": "pipe or socket"}


@dataclass(frozen=True)
class _Entry:
    """One file. `content` is the digest of a file and the target of a link."""

    kind: str
    mode: int
    time: int
    content: str = ""


def differing_files(a: Path, b: Path) -> list[str]:
    """The files in which two images differ, each as 'path: reason', sorted; empty when none does.

    Each is a SIF file or the folder of an unpacked tree. The objects of two SIF files beside their
    file systems are compared too. Raises ImageError when one is no image.
    """
    found = _compare(_entries(a), _entries(b), a, b)
    if a.is_file() and b.is_file():
        found += _compare(_objects(a), _objects(b), a, b)
    return sorted(found)


def _compare(a: Mapping[str, _Entry], b: Mapping[str, _Entry], one: Path, other: Path) -> list[str]:
    found = [f"{path}: not in {other}" for path in a.keys() - b.keys()]
    found += [f"{path}: not in {one}" for path in b.keys() - a.keys()]
    for path in a.keys() & b.keys():
        if a[path] != b[path]:
            found.append(f"{path}: {_reason(a[path], b[path])}")
    return found


def _reason(a: _Entry, b: _Entry) -> str:
    reasons = []
    if a.kind != b.kind:
        reasons.append(f"{a.kind} or {b.kind}")
    elif a.content != b.content:
        reasons.append(f"link to {a.content} or {b.content}" if a.kind == "link" else "content")
    if a.mode != b.mode:
        reasons.append(f"mode {a.mode:o} or {b.mode:o}")
    if a.time != b.time:
        reasons.append(f"time {a.time} or {b.time}")
    return ", ".join(reasons)


def _entries(image: Path) -> dict[str, _Entry]:
    return _tree_entries(image) if image.is_dir() else _sif_entries(image)


def _objects(sif: Path) -> dict[str, _Entry]:
    others = [
        found
        for found in read_objects(sif)
        if not found.is_root and found.type != ObjectType.SIGNATURE
    ]
    return {
        f"SIF object {found.name}": _Entry("object", 0, 0, _digest(read_object(sif, found.name)))
        for found in others
    }


def _tree_entries(tree: Path) -> dict[str, _Entry]:
    found = {}
    for path in [tree, *tree.rglob("*")]:
        status = path.lstat()
        mode, time = stat.S_IMODE(status.st_mode), int(status.st_mtime)
        if stat.S_ISREG(status.st_mode):
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            entry = _Entry("file", mode, time, digest)
        elif stat.S_ISLNK(status.st_mode):
            entry = _Entry("link", mode, time, str(path.readlink()))
        elif stat.S_ISDIR(status.st_mode):
            entry = _Entry("folder", mode, time)
        elif stat.S_ISFIFO(status.st_mode) or stat.S_ISSOCK(status.st_mode):
            entry = _Entry("pipe or socket", mode, time)
        else:
            entry = _Entry("device", mode, time)
        found[f"/{path.relative_to(tree)}" if path != tree else "/"] = entry
    return found


def _sif_entries(sif: Path) -> dict[str, _Entry]:
    command = [squashfs_tool("unsquashfs"), "-offset", str(root_offset(sif)), "-pf", "-", str(sif)]
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
        ) as process,
    ):
        assert process.stdout is not None
        found = _read_pseudo_file(process.stdout)
        if process.wait() != 0 or not found:
            errors.seek(0)
            words = errors.read().decode(errors="replace").strip()[-500:]
            raise InfraError(f"exit {process.returncode}: {words}", where="unsquashfs")
    return found


def _read_pseudo_file(stream: IO[bytes]) -> dict[str, _Entry]:
    """The entries of unsquashfs' pseudo file; empty when it ends early.

    Lines are 'path type time mode uid gid' and what the type needs: a file's size, offset and flag,
    a link's target. 'path L other' is a second name of a file.
    """
    found: dict[str, _Entry] = {}
    files: list[tuple[str, _Entry, int]] = []
    names: list[tuple[str, str]] = []
    for line in stream:
        if line == _START_OF_DATA:
            break
        if line.startswith(b"#"):
            continue
        path, kind, words = _fields(line.decode(errors="surrogateescape").removesuffix("\n"))
        if kind == "L":
            names.append((path, _plain(words)))
            continue
        time, mode, _, _, rest = [*words.split(" ", 4), ""][:5]
        if kind == "R":
            entry = _Entry("file", int(mode, 8), int(time))
            files.append((path, entry, int(rest.split()[0])))
        else:
            target = rest if kind == "S" else ""
            found[path] = _Entry(_KINDS[kind], int(mode, 8), int(time), target)
    else:
        return {}
    stream.readline()  # a lone # ends the head
    for path, entry, size in files:
        digest = hashlib.sha256()
        left = size
        while left > 0:
            piece = stream.read(min(left, _PIECE))
            if not piece:
                return {}
            digest.update(piece)
            left -= len(piece)
        found[path] = _Entry(entry.kind, entry.mode, entry.time, digest.hexdigest())
    for path, other in names:
        found[path] = found[other]
    return found


def _fields(line: str) -> tuple[str, str, str]:
    """The path, the type and the rest of a line. A path escapes blanks by a backslash."""
    found = re.fullmatch(r"((?:\\.|[^\\ ])+) (\w) (.*)", line, flags=re.DOTALL)
    if found is None:
        raise InfraError(f"unknown line: {line}", where="unsquashfs -pf")
    return _plain(found[1]), found[2], found[3]


def _plain(path: str) -> str:
    return "/" + re.sub(r"\\(.)", r"\1", path).removeprefix("/")


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
