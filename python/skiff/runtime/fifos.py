"""A sandbox's three streams as named pipes, which no end of a server can break.

The sandbox's first process holds each of them open for reading and writing. So it meets neither an
end of file nor SIGPIPE when the server dies, and what it prints meanwhile waits in the pipe; the
next server opens the same files. Our own ends see the end of file when the last process of the
sandbox is gone.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from skiff.errors import InfraError
from skiff.runtime.session import STDERR, STDOUT

NAMES = ("stdin", "stdout", "stderr")
CHUNK_BYTES = 1 << 16


def make_fifos(folder: Path) -> None:
    """Make the pipes in `folder`, which must be closed to other users."""
    for name in NAMES:
        os.mkfifo(folder / name)
        # Processes in the sandbox may be any id and open /dev/stdout, which is this file.
        (folder / name).chmod(0o666)


@contextlib.contextmanager
def sandbox_ends(folder: Path) -> Iterator[list[int]]:
    """The descriptors to start the first process with."""
    with contextlib.ExitStack() as stack:
        ends = []
        for name in NAMES:
            ends.append(os.open(folder / name, os.O_RDWR | os.O_CLOEXEC))
            stack.callback(os.close, ends[-1])
        yield ends


def holders(folder: Path) -> list[int]:
    """Host's pids of the processes whose stdin is the pipe in `folder`: the sandbox's first process
    and, while it starts, what starts it. A process of the sandbox may pretend to be one."""
    wanted = (folder / NAMES[0]).resolve()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            # It has ended, or it is another user's.
            with contextlib.suppress(FileNotFoundError, ProcessLookupError, PermissionError):
                if (entry / "fd" / "0").readlink() == wanted:
                    found.append(int(entry.name))
    return found


def first_process(folder: Path) -> int | None:
    """The holder that is process 1 of a namespace right below ours; None when it has ended."""
    for pid in holders(folder):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            status = Path("/proc", str(pid), "status").read_text(errors="replace")
            ids = next(line for line in status.splitlines() if line.startswith("NSpid:"))
            if ids.split()[2:] == ["1"]:
                return pid
    return None


class FifoStream:
    """Our ends: a `session.Stream`. Raises InfraError when the sandbox has ended. To be closed
    when no call of it is running."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_NONBLOCK | os.O_CLOEXEC
        self._outputs = {
            STDOUT: os.open(folder / "stdout", os.O_RDONLY | flags),
            STDERR: os.open(folder / "stderr", os.O_RDONLY | flags),
        }
        self._input: int | None = None
        try:
            self._input = os.open(folder / "stdin", os.O_WRONLY | flags)
        except OSError as error:  # nobody has it open
            self.close()
            raise InfraError("the sandbox has ended") from error

    async def receive(self) -> tuple[int, bytes]:
        while self._outputs:
            for channel, descriptor in list(self._outputs.items()):
                try:
                    data = os.read(descriptor, CHUNK_BYTES)
                except BlockingIOError:
                    continue
                del self._outputs[channel]
                if data:
                    self._outputs[channel] = descriptor  # the other one's turn comes first
                    return channel, data
                os.close(descriptor)
            if self._outputs:
                await self._readable()
        return STDOUT, b""

    async def send(self, data: bytes) -> None:
        while data:
            if self._input is None:
                raise BrokenPipeError("the stream is closed")
            try:
                data = data[os.write(self._input, data) :]
            except BlockingIOError:
                await self._writable(self._input)

    def close(self) -> None:
        for descriptor in self._outputs.values():
            os.close(descriptor)
        self._outputs = {}
        if self._input is not None:
            os.close(self._input)
            self._input = None

    async def _readable(self) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        for descriptor in self._outputs.values():
            loop.add_reader(descriptor, _wake(ready))
        try:
            await ready
        finally:
            for descriptor in self._outputs.values():
                loop.remove_reader(descriptor)

    async def _writable(self, descriptor: int) -> None:
        loop = asyncio.get_running_loop()
        ready = loop.create_future()
        loop.add_writer(descriptor, _wake(ready))
        try:
            await ready
        finally:
            loop.remove_writer(descriptor)


def _wake(future: asyncio.Future[None]) -> Callable[[], None]:
    def wake() -> None:
        if not future.done():
            future.set_result(None)

    return wake
