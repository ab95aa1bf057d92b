"""A tree of compiled files: its digests, its check, and its private copy at the place of a run.

A pack keeps it as one squashfs file, an image as a folder. Not covered: mounting the squashfs. It
is unpacked, because an engine writes beside what it finds, and few nodes let a user mount.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from skiff.apptainer import squashfs_tool
from skiff.errors import InfraError

SQUASH_SECONDS = 600.0
# Notes of what was done, not compiled code: they differ after each start. Inductor times its
# kernels again at each one, and writes down how long that took.
NOTES = (".best_config", ".lock", ".log")


def digests(tree: Path) -> dict[str, str]:
    """sha256 of every file below `tree` but `NOTES`, by its path there. Raises InfraError for a
    link."""
    found = {}
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise InfraError("is a link", where=str(path), remedy="make the pack again")
        for name in files:
            path = Path(folder, name)
            if path.suffix not in NOTES:
                found[str(path.relative_to(tree))] = digest(path)
    return dict(sorted(found.items()))


def digest(path: Path) -> str:
    """sha256 of one file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage(tree: Path, expected: Mapping[str, str]) -> list[str]:
    """What is wrong with `tree`, a sentence per file; files that should not be there included."""
    found = digests(tree)
    wrong = [f"{name} is missing" for name in expected if name not in found]
    wrong += [f"{name} is not part of it" for name in found if name not in expected]
    wrong += [
        f"{name} is damaged" for name in expected if name in found and found[name] != expected[name]
    ]
    return sorted(wrong)


def place(tree: Path, root: Path) -> None:
    """Copy `tree`, a folder or a squashfs file, to the empty folder `root`, where the process owns
    and may change it.

    Raises InfraError when `root` is not there, not empty or not writable.
    """
    empty(root)
    if tree.is_file():
        # Owners are not ours to give: without -no-exit-code that alone would be a failure.
        options = ("-no-progress", "-no-xattrs", "-no-exit-code", "-force", "-dest")
        _squashfs("unsquashfs", *options, root, tree)
    else:
        shutil.copytree(tree, root, dirs_exist_ok=True)


def squash(tree: Path, target: Path) -> None:
    """Write the folder `tree` into the new squashfs file `target`. Raises InfraError."""
    options = ("-no-progress", "-no-xattrs", "-all-root", "-comp", "zstd")
    _squashfs("mksquashfs", tree, target, *options)


def _squashfs(program: str, *arguments: str | Path) -> None:
    command = [squashfs_tool(program), *map(str, arguments)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=SQUASH_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no end after {SQUASH_SECONDS:g} s", where=program) from error
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip())[-300:]
        raise InfraError(f"exit {done.returncode}: {words}", where=program)


def empty(root: Path) -> None:
    """Raise InfraError when `root` is no empty folder that can be written."""
    if not root.is_dir() or not os.access(root, os.W_OK) or any(root.iterdir()):
        raise InfraError(
            "is no empty folder that can be written",
            where=str(root),
            remedy=f"bind one of this node: --bind FOLDER:{root}",
        )
