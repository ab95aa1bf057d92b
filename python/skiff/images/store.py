"""What a store of images can do: podman's, or a folder of SIF files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from skiff.errors import ImageError
from skiff.image_use import full_name
from skiff.images.archive import Archive

Check = Callable[[], None]  # called now and then during long work; ends it by raising
LOCAL = "localhost/"  # images under this name were built here and cannot be pulled again


@dataclass(frozen=True)
class StoredImage:
    """One image of a store.

    id          how the store itself knows it
    names       with registry and tag; none: left behind by a newer image of the same name
    pinned      the same image as repository@digest
    digest      'sha256:…' of the manifest, or of the SIF file
    size_bytes  unpacked; layers shared with other images count in each
    created     by whom it was made, not when it came here; seconds since 1970
    used        the last known use, or when it came here; seconds since 1970
    sandboxes   how many containers are made of it; None: some may be, on whatever node
    """

    id: str
    names: tuple[str, ...]
    pinned: tuple[str, ...]
    digest: str
    size_bytes: int
    created: float
    used: float
    sandboxes: int | None

    @property
    def local(self) -> bool:
        """Whether it cannot be pulled again: it was built here or has no name. podman names an
        image last, so that one without a name may just be on its way."""
        return not self.names or any(name.startswith(LOCAL) for name in self.names)

    def is_called(self, name: str) -> bool:
        """Whether a sandbox of the image `name` would be made of this one."""
        known = {*self.names, *self.pinned}
        if full_name(name) in known:
            return True
        tagged = full_name(f"{LOCAL}{name}").removeprefix("localhost")
        return any(one.endswith(tagged) for one in known)


class Store(Protocol):
    """A store of images. Its methods raise InfraError when its machinery fails, which may pass, and
    ImageError when the image is at fault."""

    @property
    def folder(self) -> Path:
        """Where the marks of `image_use` and the locks lie."""
        ...

    def images(self) -> list[StoredImage]:
        """Every image of the store."""
        ...

    def used_bytes(self) -> int:
        """What the images take on the disk, and what is on its way."""
        ...

    def pull(self, name: str, check: Check) -> None:
        """Fetch an image. Afterwards it is there whole or not at all."""
        ...

    def add(self, archive: Archive, name: str) -> None:
        """Take in an image from a file or folder under the name `name`."""
        ...

    def remove(self, image: StoredImage) -> bool:
        """Remove an image with all its names. False when it is in use; it then stays."""
        ...


def find(store: Store, name: str) -> StoredImage | None:
    """The image of the store that `name` means."""
    return next((image for image in store.images() if image.is_called(name)), None)


def not_pullable(name: str) -> ImageError:
    """The error for an image that no registry has and this machine has not built."""
    return ImageError(
        "is built, not pulled, and was not built on this machine",
        where=name,
        remedy="`skiff tasks build` makes the images of packages, `skiff images import` takes in "
        "those of another machine",
    )


def folder_bytes(folder: Path) -> int:
    """The size of all files below `folder`, which may change meanwhile; 0 when it is absent."""
    total = 0
    for place, _, files in os.walk(folder):
        for file in files:
            with contextlib.suppress(FileNotFoundError):
                total += Path(place, file).lstat().st_size
    return total
