"""Folders in and out of a sandbox as zip files, as OpenHands V0's clients send and want them.

An archive is somebody else's: names that would lead out of the folder, and links, are refused
before anything is written; sizes are counted while unpacking, whatever the headers say. Nothing is
unpacked on the host. Neither modes nor links nor empty folders travel. A folder's tar, not larger
than a file may be, lies in the sandbox's /tmp for a moment, and on the server's disk.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import lzma
import posixpath
import secrets
import stat
import struct
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from shlex import quote
from typing import IO, BinaryIO, cast

from skiff.runtime.backend import Container
from skiff.runtime.reading import FILE_BYTES, pieces
from skiff.runtime.spool import MEMORY_BYTES

MEMBERS = 10_000
UNPACKED_BYTES = 4 * FILE_BYTES
TAR_SECONDS = 60.0
PIECE_BYTES = 1 << 20
# What the standard library's readers raise for an archive that was made to hurt.
_BROKEN = (
    zipfile.BadZipFile,
    tarfile.TarError,
    zlib.error,
    lzma.LZMAError,
    struct.error,
    EOFError,
    ValueError,
    OverflowError,
    NotImplementedError,  # a compression of another age
    RuntimeError,  # encrypted
)


async def unpack(container: Container, source: BinaryIO, folder: str) -> None:
    """Write the files of a zip below `folder`, an absolute path. Raises OSError."""
    with _refused("zip"):
        archive = zipfile.ZipFile(source)
        members = [member for member in archive.infolist() if not member.is_dir()]
    _check_names([member.filename for member in members])
    for member in members:
        if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG):
            raise _refusal("only plain files are unpacked", member.filename)
    left = UNPACKED_BYTES
    for member in members:
        with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
            with _refused("zip"), archive.open(member) as content:
                left -= await asyncio.to_thread(_copy, content, spool, min(left, FILE_BYTES))
            spool.seek(0)
            path = posixpath.join(folder, member.filename)
            await container.write(path, cast(BinaryIO, spool), 0o644)


async def pack(container: Container, path: str, target: BinaryIO) -> None:
    """Write the plain files of a folder (or one file) of the sandbox to `target`, as a zip.
    Raises OSError."""
    if (await _shell(container, f"[ -e {quote(path)} ]"))[0] != 0:
        raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
    tar = f"/tmp/.skiff-{secrets.token_hex(8)}.tar"
    parent, name = posixpath.split(path)
    what = f"if [ -d {quote(path)} ]; then cd {quote(path)} && set -- .; else"
    what += f' cd {quote(parent)} && set -- {quote(f"./{name}")}; fi && tar -cf {tar} -- "$@"'
    with tempfile.SpooledTemporaryFile(MEMORY_BYTES) as spool:
        try:
            exit_code, words = await _shell(container, what)
            if exit_code != 0:
                raise OSError(errno.EIO, f"tar failed in the sandbox: {words}", path)
            async for piece in pieces(container, tar):
                spool.write(piece)
        finally:
            await _shell(container, f"rm -f {tar}")
        spool.seek(0)
        with _refused("tar"):
            await asyncio.to_thread(_zip, spool, target)


def _zip(tar: IO[bytes], target: BinaryIO) -> None:
    left = UNPACKED_BYTES
    with (
        tarfile.open(fileobj=tar, mode="r:") as source,
        zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
    ):
        for count, member in enumerate(source):
            content = source.extractfile(member) if member.isreg() else None
            if content is None:
                continue
            name = member.name.removeprefix("./")
            _check_names([name])
            if count >= MEMBERS:
                raise _refusal(f"more than {MEMBERS} members")
            with content, archive.open(zipfile.ZipInfo(name), "w") as entry:
                left -= _copy(content, entry, left)


def _check_names(names: Sequence[str]) -> None:
    if len(names) > MEMBERS:
        raise _refusal(f"more than {MEMBERS} members")
    for name in names:
        if not name or name.startswith("/") or "\0" in name or ".." in name.split("/"):
            raise _refusal("a name that leads out of the folder", name)


def _copy(source: IO[bytes], target: IO[bytes], most: int) -> int:
    """The number of copied bytes. Raises OSError when there are more than `most`."""
    copied = 0
    while piece := source.read(PIECE_BYTES):
        copied += len(piece)
        if copied > most:
            raise _refusal(f"unpacks to more than {most >> 20} MiB")
        target.write(piece)
    return copied


@contextlib.contextmanager
def _refused(kind: str) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        raise _refusal(f"not a {kind} that can be read: {error}") from error


def _refusal(reason: str, name: str = "") -> OSError:
    return OSError(errno.EINVAL, reason, name)


async def _shell(container: Container, command: str) -> tuple[int | None, str]:
    """(exit code, the end of what it said)"""
    done = await container.run(command, timeout=TAR_SECONDS, cwd="/", stop=asyncio.Event())
    return done.exit_code, done.stderr.decode(errors="replace").strip()[-300:]
