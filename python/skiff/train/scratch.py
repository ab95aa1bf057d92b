"""The folder of one start of verl on its node: Ray's sockets and logs, and its token.

Its path is short, because sockets need that, and nobody else can pass it, because Ray opens its own
folder in it to all. Its maker holds a lock on it as long as it lives: so what a killed one has left
is told from what is in use, and is removed by whoever comes next. (Names as in skiff.images.owner
would be too long.) Not covered: a node to which nobody comes again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from skiff.errors import InfraError

ROOT = Path("/tmp")
PREFIX = "skiff-ray-"
_NEW = "skiff-new-"


@contextlib.contextmanager
def scratch(place: Path | None = None) -> Iterator[Path]:
    """A new folder, which ends with the block.

    `place` is where another node's start has its own; if that node is this one, it is there already
    and stays. Raises InfraError when it is another user's.
    """
    remove_abandoned()
    if place is not None and place.exists():
        if place.stat().st_uid != os.getuid():
            raise InfraError("is another user's", where=str(place))
        yield place
        return
    new = Path(tempfile.mkdtemp(prefix=_NEW, dir=ROOT))
    with _held(new):  # before it has a name that is looked for
        folder = new.rename(place or ROOT / new.name.replace(_NEW, PREFIX))
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove those folders of this user whose maker is dead."""
    for folder in ROOT.glob(f"{PREFIX}*"):
        # Else it is in use, another user's or gone by now.
        with contextlib.suppress(OSError), _held(folder):
            if folder.stat().st_uid == os.getuid():
                shutil.rmtree(folder)


@contextlib.contextmanager
def _held(folder: Path) -> Iterator[None]:
    """Raises OSError when somebody else holds it."""
    opened = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)
