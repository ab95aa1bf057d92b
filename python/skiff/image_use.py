"""How an image's name becomes a file name, and when an image was last used.

A store (podman's root, or a folder of SIF files) keeps an empty file per image in `last-use/`; its
modification time is the last use. Whoever starts a sandbox calls `mark_used`, and again within
`LEASE_SECONDS` as long as the sandbox lives: a SIF file may be read on a node that we cannot see.
Not covered: counting the users of an image.
"""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import unquote

LEASE_SECONDS = 1800.0  # an image counts as being used for so long after its last mark
_DEFAULT_REGISTRY = "docker.io"  # what a name without a registry means to every container engine
_MARKS = "last-use"


def full_name(name: str) -> str:
    """The name with its registry and its tag, as container engines complete it.

    A name with tag and digest loses the tag, since the digest says it all.
    """
    path, at, digest = name.partition("@")
    registry, slash, rest = path.partition("/")
    if not slash:
        path = f"{_DEFAULT_REGISTRY}/library/{path}"
    elif registry != "localhost" and not re.search("[.:]", registry):
        path = f"{_DEFAULT_REGISTRY}/{path}"
    elif registry == _DEFAULT_REGISTRY and "/" not in rest:
        path = f"{_DEFAULT_REGISTRY}/library/{rest}"
    folder, _, last = path.rpartition("/")
    if at:
        return f"{folder}/{last.partition(':')[0]}@{digest}"
    return path if ":" in last else f"{path}:latest"


def file_name(image: str) -> str:
    """A file name for an image's name: '/' becomes '__'. `image_name` reverses it.

    Underscores that could be taken for a slash are written as in URLs, and so is a leading dot.
    """
    escaped = image.replace("%", "%25")
    escaped = re.sub(r"_(?=[_/])|(?<=[_/])_", "%5F", escaped)
    escaped = re.sub(r"^\.", "%2E", escaped)
    return escaped.replace("/", "__")


def image_name(file: str) -> str:
    """The image's name that `file_name` was given."""
    return unquote(file.replace("__", "/"))


def sif_path(folder: Path, image: str) -> Path:
    """Where the SIF cache `folder` keeps an image; the file may not exist."""
    return folder / f"{file_name(full_name(image))}.sif"


def mark_used(store: Path, image: str) -> None:
    """Note that `image` of the store in the folder `store` is in use now. Raises OSError."""
    mark = _mark(store, image)
    mark.parent.mkdir(parents=True, exist_ok=True)
    mark.touch()


def last_used(store: Path, image: str) -> float:
    """Seconds since 1970 of the last mark; 0 when there is none."""
    try:
        return _mark(store, image).stat().st_mtime
    except FileNotFoundError:
        return 0.0


def forget(store: Path, image: str) -> None:
    """Remove the mark of an image that the store no longer holds."""
    _mark(store, image).unlink(missing_ok=True)


def _mark(store: Path, image: str) -> Path:
    return store / _MARKS / file_name(full_name(image))
