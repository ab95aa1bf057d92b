"""Files out of a sandbox, piece by piece: memory holds one piece, and other calls of the sandbox
come in between.

Not covered: a file that is changed while it is read; its pieces are of different moments.
"""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator

from skiff.runtime.backend import Container

FILE_BYTES = 64 << 20  # largest file that is moved
PIECE_BYTES = 1 << 20


async def pieces(container: Container, path: str) -> AsyncIterator[bytes]:
    """A regular file's content; all pieces but the last have PIECE_BYTES.

    Raises FileNotFoundError, and OSError with the reason: what can be known beforehand (size,
    rights) before the first piece.
    """
    offset = 0
    while True:
        piece = await container.read(path, offset=offset, length=PIECE_BYTES)
        whole = len(piece) < PIECE_BYTES
        if offset == 0 and not whole and await container.read(path, offset=FILE_BYTES, length=1):
            raise _too_large(path)
        offset += len(piece)
        if offset > FILE_BYTES:  # it grows
            raise _too_large(path)
        yield piece
        if whole:
            return


async def content(container: Container, path: str) -> bytes:
    """All of it, in memory. Raises like `pieces`."""
    return b"".join([piece async for piece in pieces(container, path)])


def _too_large(path: str) -> OSError:
    return OSError(errno.EFBIG, f"larger than {FILE_BYTES >> 20} MiB", path)
