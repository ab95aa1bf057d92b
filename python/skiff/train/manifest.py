"""A checkpoint's manifest: size and SHA-256 of every file of its folder.

It is written last, so a folder that has one was saved to the end, and `fault` says what has
happened to it since. SHA-256 because it is the fastest strong hash of Python's library where the
CPU has instructions for it: 1.4 GB/s a core, several files at a time. Not covered: forgery; and
pages that another node still holds, which reach the disk when that node's file system writes them.
"""

from __future__ import annotations

import hashlib
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from skiff.files import write_atomic

NAME = "skiff-complete"
THREADS = 8


class Entry(BaseModel):
    """One file. `size` in bytes."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    size: Annotated[int, Field(ge=0)]
    sha256: str


class Manifest(BaseModel):
    """All files below a checkpoint's folder, by their paths in it."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    files: dict[str, Entry]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def write_manifest(folder: Path) -> Manifest:
    """Have every file of `folder` reach the disk, and write down what is in it. Raises OSError."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != NAME)
    with ThreadPoolExecutor(THREADS) as pool:
        entries = list(pool.map(_kept, paths))
    names = (str(path.relative_to(folder)) for path in paths)
    manifest = Manifest(files=dict(zip(names, entries, strict=True)))
    for inner in {folder, *(path.parent for path in paths)}:
        _sync(inner)
    write_atomic(folder / NAME, json.dumps(manifest.model_dump(), indent=1) + "\n")
    for outer in (folder, folder.parent):
        _sync(outer)
    return manifest


def fault(folder: Path) -> str:
    """What is wrong with a checkpoint, in some words; "" when it is as its manifest says.

    Raises OSError when a file is there and cannot be read.
    """
    try:
        manifest = Manifest.model_validate_json((folder / NAME).read_bytes())
    except FileNotFoundError:
        return "it was not saved to its end"
    except ValidationError:
        return "its manifest is no manifest"
    for name, entry in manifest.files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if (size := path.stat().st_size) != entry.size:
            return f"{name} has {size} bytes instead of {entry.size}"
    names = list(manifest.files)
    with ThreadPoolExecutor(THREADS) as pool:
        found = pool.map(lambda name: _sha256(folder / name), names)
        for name, digest in zip(names, found, strict=True):
            if digest != manifest.files[name].sha256:
                return f"{name} has another SHA-256 than when it was saved"
    return ""


def _kept(path: Path) -> Entry:
    _sync(path)
    return Entry(size=path.stat().st_size, sha256=_sha256(path))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
