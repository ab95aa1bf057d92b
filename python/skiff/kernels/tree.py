"""A tree of compiled files: its digests, its check, and its private copy at the place of a run."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from skiff.errors import InfraError


def digests(tree: Path) -> dict[str, str]:
    """sha256 of every file below `tree`, by its path there. Raises InfraError for a link."""
    found = {}
    for folder, folders, files in os.walk(tree):
        for name in (*folders, *files):
            path = Path(folder, name)
            if path.is_symlink():
                raise InfraError("is a link", where=str(path), remedy="make the pack again")
        for name in files:
            path = Path(folder, name)
            with path.open("rb") as file:
                found[str(path.relative_to(tree))] = hashlib.file_digest(file, "sha256").hexdigest()
    return dict(sorted(found.items()))


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
    """Copy `tree` to the empty folder `root`, where the process owns and may change it.

    Raises InfraError when `root` is not there, not empty or not writable.
    """
    empty(root)
    shutil.copytree(tree, root, dirs_exist_ok=True)


def empty(root: Path) -> None:
    """Raise InfraError when `root` is no empty folder that can be written."""
    if not root.is_dir() or not os.access(root, os.W_OK) or any(root.iterdir()):
        raise InfraError(
            "is no empty folder that can be written",
            where=str(root),
            remedy=f"bind one of this node: --bind FOLDER:{root}",
        )
