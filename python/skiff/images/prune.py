"""Removing the images that were not used for longest, and the limit on what a store may hold.

Never removed: an image in use, one that is asked to be kept, and, unless told so, one that was
built on this machine and cannot be pulled again. Only Skiff's own stores are looked at.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Collection

from skiff.errors import ImageError
from skiff.images.store import Store, StoredImage

GIB = 1 << 30
MIN_FREE_BYTES = 2 * GIB  # on the store's disk; a full disk stops every sandbox there


def candidates(
    images: Collection[StoredImage], *, keep: Collection[str] = (), local: bool = False
) -> list[StoredImage]:
    """The images that may go, the one not used for longest first."""
    free = [
        image
        for image in images
        if image.sandboxes == 0
        and (local or not image.local)
        and not any(image.is_called(name) for name in keep)
    ]
    return sorted(free, key=lambda image: image.used)


def prune(
    store: Store,
    *,
    max_bytes: int | None = None,
    older_than: float | None = None,
    local: bool = False,
    keep: Collection[str] = (),
    dry_run: bool = False,
) -> list[StoredImage]:
    """Remove what was not used for `older_than` seconds, then the rest of what is over `max_bytes`.

    Returns what was removed, or with `dry_run` about what would be: shared layers are not known.
    """
    removed = []
    used_bytes = store.used_bytes()
    oldest = time.time() - older_than if older_than is not None else None
    for image in candidates(store.images(), keep=keep, local=local):
        old = oldest is not None and image.used < oldest
        over = max_bytes is not None and used_bytes > max_bytes
        if not (old or over):
            break
        if dry_run:
            used_bytes -= image.size_bytes
        elif store.remove(image):
            used_bytes = store.used_bytes()
        else:
            continue
        removed.append(image)
    return removed


class DiskLimit:
    """Keeps a store below `max_bytes`, and some space free on its disk. Used by several threads."""

    def __init__(self, store: Store, max_bytes: int | None, keep: Collection[str]) -> None:
        self._store = store
        self._max_bytes = max_bytes
        self._keep = keep
        self._lock = threading.Lock()

    def check(self) -> None:
        """Make room when the limit is reached. Raises ImageError when nothing more may go."""
        with self._lock:
            if self._exceeded() and not self._make_room():
                limit = "" if self._max_bytes is None else f" of {self._max_bytes / GIB:.1f} GiB"
                raise ImageError(
                    f"the disk limit{limit} is reached, and every other image is in use or wanted",
                    where=str(self._store.folder),
                    remedy="raise --max-gib, pull fewer tasks, or run `skiff images prune`",
                )

    def _exceeded(self) -> bool:
        if shutil.disk_usage(self._store.folder).free < MIN_FREE_BYTES:
            return True
        return self._max_bytes is not None and self._store.used_bytes() > self._max_bytes

    def _make_room(self) -> bool:
        for image in candidates(self._store.images(), keep=self._keep):
            if self._store.remove(image) and not self._exceeded():
                return True
        return False
