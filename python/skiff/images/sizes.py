"""What takes the room in an unpacked image: bytes by package.

A file counts once, for the Python distribution or else the Debian package that lists it; what
nobody lists counts for the interpreter or the top folder that it lies below.
Not covered: how well a package compresses; the numbers are those before compression.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.table import Table

from skiff.images.installed import debian_packages, distributions, interpreters

MIB = 1 << 20
TOP = 25


@dataclass(frozen=True)
class Share:
    """The part of an image that is one package's. `kind`: python, debian or folder."""

    kind: str
    name: str
    version: str
    bytes: int
    files: int


def package_sizes(tree: Path) -> list[Share]:
    """The packages and folders of an unpacked image, the largest first; together all its bytes."""
    owners: dict[str, tuple[str, str, str]] = {}
    for package in debian_packages(tree):
        owners |= dict.fromkeys(package.files, ("debian", package.name, package.version))
    for one in distributions(tree):
        owners |= dict.fromkeys(one.files, ("python", one.name, one.version))
    prefixes = {one.prefix: ("python", "(interpreter)", one.version) for one in interpreters(tree)}
    sizes: Counter[tuple[str, str, str]] = Counter()
    numbers: Counter[tuple[str, str, str]] = Counter()
    seen: set[tuple[int, int]] = set()
    for folder, _, files in os.walk(tree):
        inside = "/" + str(Path(folder).relative_to(tree)).removeprefix(".")
        rest = _rest(inside, prefixes)
        for name in files:
            status = Path(folder, name).lstat()
            inode = (status.st_dev, status.st_ino)
            if not stat.S_ISREG(status.st_mode) or inode in seen:
                continue
            if status.st_nlink > 1:
                seen.add(inode)
            owner = owners.get(f"{inside.rstrip('/')}/{name}", rest)
            sizes[owner] += status.st_size
            numbers[owner] += 1
    found = [Share(*owner, bytes=size, files=numbers[owner]) for owner, size in sizes.items()]
    return sorted(found, key=lambda share: (-share.bytes, share.kind, share.name, share.version))


def sizes_table(found: Sequence[Share], *, title: str, top: int = TOP) -> Table:
    """The `top` largest shares, one line for the others and one for all."""
    table = Table("package", "version", "kind", title=title, box=None, header_style="bold")
    table.add_column("MiB", justify="right")
    table.add_column("files", justify="right")
    for share in found[:top]:
        table.add_row(share.name, share.version, share.kind, *_numbers([share]))
    if found[top:]:
        table.add_row(f"{len(found[top:])} others", "", "", *_numbers(found[top:]))
    table.add_row("all", "", "", *_numbers(found), style="bold")
    return table


def _numbers(found: Sequence[Share]) -> tuple[str, str]:
    size = sum(share.bytes for share in found) / MIB
    return f"{size:,.1f}", f"{sum(share.files for share in found):,}"


def _rest(inside: str, prefixes: dict[str, tuple[str, str, str]]) -> tuple[str, str, str]:
    """Whom a file counts for that no package lists, by its folder."""
    for prefix, owner in prefixes.items():
        if inside == prefix or inside.startswith(f"{prefix.rstrip('/')}/"):
            return owner
    return ("folder", "/" + inside.split("/")[1], "")
