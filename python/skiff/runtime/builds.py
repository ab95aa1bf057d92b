"""Images built from a client's context: a queue of its own, beside the sandboxes.

A context is a tar.gz, in base64 as OpenHands' client sends it. It is unpacked as data: no link, no
device and no name may lead out of its folder, and it may not unpack to more than the cap. At most
`concurrent` builds run, in order of arrival; nothing is pulled and RUN has no network.

Not covered: surviving a restart of the server (a build is then unknown); caching of layers.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import logging
import re
import secrets
import shutil
import tarfile
import tempfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO

from skiff.errors import InfraError, TaskError
from skiff.runtime.backend import Backend

KEPT = 1000  # ended builds that can still be asked for
MEMBERS = 200_000  # files of one context
TAGS = 16
CHUNK_BYTES = 1 << 20  # of base64; a multiple of 4
ERROR_CHARACTERS = 20_000  # of the builder's words, from their end
NAME = re.compile(
    r"[a-z0-9]+(?:[._/-]+[a-z0-9]+)*(?::[0-9]+/[a-z0-9._/-]+)?(?::[\w][\w.-]{0,127})?"
)

log = logging.getLogger("skiff.runtime")


class BuildState(StrEnum):
    """The protocol's words."""

    QUEUED = "QUEUED"
    WORKING = "WORKING"
    SUCCESS = "SUCCESS"
    FAILURE = "FAILURE"
    CANCELLED = "CANCELLED"


@dataclass(eq=False)
class Build:
    """One build; only `Builds` changes its state."""

    images: tuple[str, ...]
    folder: Path
    build_id: str = field(default_factory=lambda: secrets.token_hex(8))
    state: BuildState = BuildState.QUEUED
    error: str | None = None


class Builds:
    """Builds images by `backend`, in folders below `folder`. Use `close` last."""

    def __init__(
        self, backend: Backend, folder: Path, *, concurrent: int, context_bytes: int
    ) -> None:
        self._backend = backend
        self._folder = folder
        self._context_bytes = context_bytes
        self._places = asyncio.Semaphore(concurrent)
        self._builds: dict[str, Build] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def open(self) -> None:
        """Remove what an earlier server has left behind."""
        if self._folder.exists():
            shutil.rmtree(self._folder)
        self._folder.mkdir(parents=True, mode=0o700)

    async def close(self) -> None:
        """Break off every build."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def start(self, context: BinaryIO, images: Sequence[str]) -> Build:
        """Queue a build of `context` (base64 of a tar.gz); the first image gets the other names.

        Raises TaskError when the context is no base64 or too large.
        """
        folder = Path(tempfile.mkdtemp(dir=self._folder))
        try:
            await asyncio.to_thread(
                _decode, context, folder / "context.tar.gz", self._context_bytes
            )
        except BaseException:
            shutil.rmtree(folder)
            raise
        build = Build(tuple(images), folder)
        self._builds[build.build_id] = build
        self._forget_old()
        task = asyncio.create_task(self._run(build))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return build

    def get(self, build_id: str) -> Build | None:
        return self._builds.get(build_id)

    def counts(self) -> dict[BuildState, int]:
        """The builds that can still be asked for, by state."""
        states = [build.state for build in self._builds.values()]
        return {state: states.count(state) for state in BuildState}

    async def _run(self, build: Build) -> None:
        try:
            async with self._places:
                build.state = BuildState.WORKING
                await self._build(build)
            build.state = BuildState.SUCCESS
        except asyncio.CancelledError:
            build.state, build.error = BuildState.CANCELLED, "the server is shutting down"
            raise
        except (InfraError, TaskError) as error:
            build.state, build.error = BuildState.FAILURE, str(error)[-ERROR_CHARACTERS:]
            log.warning("build of %s: %s", build.images[0], build.error)
        finally:
            await asyncio.to_thread(shutil.rmtree, build.folder)

    async def _build(self, build: Build) -> None:
        context = build.folder / "context"
        packed = build.folder / "context.tar.gz"
        await asyncio.to_thread(_unpack, packed, context, self._context_bytes)
        first, *others = build.images
        await self._backend.build(context, first)
        again = build.folder / "again"
        again.mkdir()
        (again / "Dockerfile").write_text(f"FROM {first}\n")  # the same image by another name
        for name in others:
            await self._backend.build(again, name)

    def _forget_old(self) -> None:
        ended = [b for b in self._builds.values() if b.state not in ("QUEUED", "WORKING")]
        for build in ended[: max(len(ended) - KEPT, 0)]:
            del self._builds[build.build_id]


def check_image_name(name: str, prefix: str) -> str:
    """`name`, if a client may make an image of it: in localhost/ or below `prefix`.

    Raises ValueError.
    """
    if not NAME.fullmatch(name):
        raise ValueError("is not the name of an image")
    if not name.startswith(("localhost/", f"{prefix.rstrip('/')}/")):
        raise ValueError(f"must begin with localhost/ or {prefix.rstrip('/')}/")
    return name


def _decode(source: BinaryIO, target: Path, most: int) -> None:
    """Base64 to bytes, in pieces; line breaks are allowed."""
    rest, size = b"", 0
    with target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            text = rest + b"".join(chunk.split())
            whole = len(text) - len(text) % 4
            rest = text[whole:]
            try:
                data = base64.b64decode(text[:whole], validate=True)
            except binascii.Error as error:
                raise TaskError(f"is not base64: {error}", where="build context") from error
            size += len(data)
            if size > most:
                raise _too_large(most)
            file.write(data)
    if rest or not size:
        raise TaskError("is not base64: it ends too early", where="build context")


def _unpack(packed: Path, target: Path, most: int) -> None:
    """Unpack a tar.gz into the new folder `target`. Raises TaskError."""
    size = members = 0
    target.mkdir()
    try:
        with tarfile.open(packed, "r:gz") as archive, contextlib.closing(archive):
            for member in archive:
                size += member.size
                members += 1
                if size > most or members > MEMBERS:
                    raise _too_large(most)
                archive.extract(member, target, filter="data")
    except (tarfile.TarError, EOFError, OSError, zlib.error, ValueError) as error:
        raise TaskError(f"cannot be unpacked: {error}", where="build context") from error
    if not any((target / name).is_file() for name in ("Dockerfile", "Containerfile")):
        raise TaskError("holds no Dockerfile", where="build context")


def _too_large(most: int) -> TaskError:
    return TaskError(
        f"has more than {most >> 20} MiB or {MEMBERS} files",
        where="build context",
        remedy="leave out what the image does not need, or raise runtime.build_context_mib",
    )
