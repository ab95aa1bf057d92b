"""Bodies on their way into a sandbox: on disk once they pass a megabyte, never whole in memory.

A body's size is capped by `sandbox_access` while it arrives. A full disk of this host is a failure
of the machinery, not of the sandbox's file.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import AsyncIterator, Iterator
from typing import BinaryIO, cast

from fastapi import HTTPException, Request
from starlette.datastructures import UploadFile

from skiff.errors import InfraError

MEMORY_BYTES = 1 << 20


@contextlib.asynccontextmanager
async def body(request: Request) -> AsyncIterator[BinaryIO]:
    """The request's body, at its beginning."""
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        with _own_disk():
            async for chunk in request.stream():
                spool.write(chunk)
            spool.seek(0)
        yield cast(BinaryIO, spool)


@contextlib.asynccontextmanager
async def form_file(request: Request) -> AsyncIterator[tuple[str, BinaryIO]]:
    """Name and content of the multipart field `file`. Raises HTTPException 422 without one."""
    with _own_disk():
        form = await request.form(max_files=1, max_fields=8)  # spooled likewise by Starlette
    try:
        file = form.get("file")
        if not isinstance(file, UploadFile):
            raise HTTPException(422, "the multipart field `file` is missing")
        yield file.filename or "", file.file
    finally:
        await form.close()


def size(source: BinaryIO) -> int:
    """Its length in bytes; it stands at its beginning afterwards."""
    end = source.seek(0, 2)
    source.seek(0)
    return end


@contextlib.contextmanager
def _own_disk() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InfraError(
            f"an upload can't be kept: {error.strerror}",
            where=f"the runtime server's {tempfile.gettempdir()}",
        ) from error
