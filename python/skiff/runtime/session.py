"""One sandbox's long-lived conversation with its first process, over the attach stream.

A command costs a write and a few reads here and one fork in the sandbox; no program is started on
the host. Calls wait for each other. When the stream ends, the engine says how the container ended:
every waiting and later call then raises SandboxEndedError if that was the work of what ran in it,
and else InfraError. Who has only met a silence is told of a failure of the machinery.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import secrets
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from typing import BinaryIO, Protocol

from skiff.errors import InfraError
from skiff.runtime import shell
from skiff.runtime.backend import ENDED, CommandOutput, End, SandboxEndedError
from skiff.runtime.capture import Capture

STDOUT, STDERR = 1, 2
TERM_GRACE_SECONDS = 1.0
KILL_GRACE_SECONDS = 10.0
LAST_LINES, LAST_LINE_SECONDS = 5, 2.0
READY_SECONDS = 30.0
PAUSE_SECONDS = 10.0
FILE_SECONDS = 120.0
CLOSE_SECONDS = 5.0
MESSAGE_BYTES = 4096  # of a script's errors
STOPPED = End("it was stopped")
FLOOD_BYTES = 16 << 20  # output of one command that is dropped at full speed
FLOOD_SLICE, FLOOD_PAUSE_SECONDS = 1 << 20, 0.02  # from then on: a pause every so many bytes


class Stream(Protocol):
    """The container's stdin and its two output streams."""

    async def receive(self) -> tuple[int, bytes]:
        """(STDOUT or STDERR, bytes); empty bytes when the container has ended."""
        ...

    async def send(self, data: bytes) -> None:
        """Raises OSError when the container has ended."""
        ...

    def close(self) -> None: ...


class Session:
    """Runs commands and moves files through `stream`.

    signal    sends a signal, by name, to the container's first process
    obituary  says why the container has ended
    processes limit of the commands; the container must allow SPARE_PIDS more
    """

    def __init__(
        self,
        stream: Stream,
        *,
        signal: Callable[[str], Awaitable[None]],
        obituary: Callable[[], Awaitable[End]],
        output_bytes: int,
        processes: int,
    ) -> None:
        self._stream = stream
        self._signal = signal
        self._obituary = obituary
        self._output_bytes = output_bytes
        self._processes = processes
        self._lock = asyncio.Lock()
        self._captures: dict[int, Capture] = {}
        self._done: asyncio.Future[None] | None = None
        self._end: End | None = None
        self._kill_reason: str | None = None
        self._paused = False
        self._pump = asyncio.create_task(self._receive_all())

    @property
    def end(self) -> End | None:
        """Why the conversation is over; None while it goes on."""
        return self._end

    @property
    def busy(self) -> bool:
        """True while a call runs."""
        return self._lock.locked()

    @property
    def paused(self) -> bool:
        return self._paused

    async def open(self) -> None:
        """Send the dispatcher; return when it answers. Nobody's command has run before that, so
        whatever happens is an InfraError."""
        try:
            await self._greet(shell.dispatcher, READY_SECONDS)
        except SandboxEndedError as error:
            raise InfraError(f"it ended at its start: {error}") from error

    async def reopen(self) -> None:
        """Go on where another server has left off; return when the dispatcher answers.

        The command that was running is ended: SIGTERM, one second later SIGKILL.
        """
        await self._signal(shell.TERMINATE)
        greeting = asyncio.create_task(
            self._greet(lambda nonce: shell.resync() + shell.dispatcher(nonce), READY_SECONDS)
        )
        await asyncio.wait([greeting], timeout=TERM_GRACE_SECONDS)
        if not greeting.done():
            await self._signal(shell.KILL)
        await greeting

    async def run(
        self, command: str, *, timeout: float, cwd: str, stop: asyncio.Event
    ) -> CommandOutput:
        """See `backend.Container.run`."""
        nonce = _nonce()
        line = shell.command_line(nonce, cwd, command, processes=self._processes)
        return await self._call(line, nonce, cap=self._output_bytes, timeout=timeout, stop=stop)

    async def read(self, path: str, *, offset: int, length: int) -> bytes:
        """See `backend.Container.read`."""
        words = (path.encode(), b"%d" % offset, b"%d" % length)
        done = await self._script(shell.READ, *words, cap=2 * length + MESSAGE_BYTES)
        if done.exit_code == shell.NOT_FOUND:
            raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
        _check(done, path)
        return done.stdout

    async def write(self, path: str, source: BinaryIO, mode: int) -> None:
        """See `backend.Container.write`."""
        target = path.encode()
        script = shell.WRITE_FIRST
        while (data := source.read(shell.PIECE_BYTES)) or script is shell.WRITE_FIRST:
            starts = range(0, max(len(data), 1), shell.CHUNK_BYTES)
            words = [shell.escape(data[at : at + shell.CHUNK_BYTES]) for at in starts]
            _check(await self._script(script, target, *words), path)
            script = shell.WRITE_MORE
        _check(await self._script(shell.SET_MODE, target, b"%o" % mode), path)

    async def pause(self) -> None:
        """See `backend.Container.pause`. Later calls raise InfraError; a call in flight goes on
        counting its timeout."""
        self._check_alive()
        self._paused = True
        await self._signal(shell.PAUSE)
        await self._settle()

    async def resume(self) -> None:
        """See `backend.Container.resume`."""
        self._check_alive()
        await self._signal(shell.RESUME)
        await self._settle()
        self._paused = False

    async def kill_all(self, reason: str) -> None:
        """End every process of the sandbox but the first; the running (or next) command
        reports `reason`."""
        self._kill_reason = reason
        await self._signal(shell.KILL_ALL)

    def fail(self, end: End) -> None:
        """Calls in flight, and all later ones, raise an error with its reason."""
        if self._end is None:
            self._end = end
        if self._done is not None and not self._done.done():
            self._done.set_exception(error_of(self._end))

    async def close(self) -> None:
        """End the conversation. After the container's end this waits for nothing."""
        self.fail(STOPPED)
        await asyncio.wait([self._pump], timeout=CLOSE_SECONDS)
        self._pump.cancel()
        self._stream.close()

    async def _settle(self) -> None:
        """Wait until an idle dispatcher has seen the signals that were sent; a busy one sees them
        at once."""
        if not self.busy:
            await self._greet(shell.answer, PAUSE_SECONDS)

    async def _greet(self, line: Callable[[str], bytes], timeout: float) -> None:
        """Send `line(nonce)` and wait for the answer. Raises InfraError when there is none."""
        nonce = _nonce()
        async with self._lock:
            ended = await self._exchange(line(nonce), nonce, cap=MESSAGE_BYTES, timeout=timeout)
        if ended.timed_out:
            raise InfraError(f"its first process did not answer within {timeout:g} s")

    async def _script(
        self, script: str, *arguments: bytes, cap: int = MESSAGE_BYTES
    ) -> CommandOutput:
        nonce = _nonce()
        processes = self._processes + shell.SPARE_PIDS
        line = shell.script_line(nonce, script, arguments, processes=processes)
        done = await self._call(line, nonce, cap=cap, timeout=FILE_SECONDS)
        if done.timed_out:
            raise InfraError(f"a file transfer did not end within {FILE_SECONDS:g} s")
        return done

    async def _call(
        self,
        line: bytes,
        nonce: str,
        *,
        cap: int,
        timeout: float,
        stop: asyncio.Event | None = None,
    ) -> CommandOutput:
        async with self._lock:
            if self._paused:
                raise InfraError("the sandbox is paused")
            return await self._exchange(line, nonce, cap=cap, timeout=timeout, stop=stop)

    async def _exchange(
        self,
        line: bytes,
        nonce: str,
        *,
        cap: int,
        timeout: float,
        stop: asyncio.Event | None = None,
    ) -> CommandOutput:
        """Send a line and collect its output. Only with the lock held."""
        self._check_alive()
        out, err = Capture(nonce, cap), Capture(nonce, cap)
        self._captures = {STDOUT: out, STDERR: err}
        done = self._done = asyncio.get_running_loop().create_future()
        began = time.monotonic()
        try:
            timed_out = False
            await self._send(line)
            interrupted = not await _ended(done, timeout, stop)
            if interrupted:
                timed_out = stop is None or not stop.is_set()
                await self._interrupt(done, nonce)
            await done  # raises what `fail` has put there
        except asyncio.CancelledError:
            self.fail(End("a call was broken off in the middle"))
            raise
        finally:
            self._captures = {}
            self._done = None
        stderr = err.content()
        if self._kill_reason is not None:
            stderr += f"\n[killed: {self._kill_reason}]\n".encode()
            self._kill_reason = None
        return CommandOutput(
            exit_code=None if interrupted else out.exit_code,
            stdout=out.content(),
            stderr=stderr,
            timed_out=timed_out,
            truncated=bool(out.dropped or err.dropped),
            seconds=time.monotonic() - began,
        )

    def _check_alive(self) -> None:
        if self._end is not None:
            raise error_of(self._end)

    async def _send(self, line: bytes) -> None:
        try:
            await self._stream.send(line)
        except OSError:
            await self._pump  # the reading side learns why
            if self._end is None:
                raise

    async def _interrupt(self, done: asyncio.Future[None], nonce: str) -> None:
        """SIGTERM to the running command's group, then SIGKILL, then SIGKILL to all.

        What is deaf to that is a first process whose stdin others read or write in, as root in the
        sandbox can: when they are gone, one of our lines is read and ends whatever was begun.
        A first process that was broken for good, by tracing it, is not told from a kernel that
        hangs, and counts as a failure of the machinery.
        """
        steps = ((shell.TERMINATE, TERM_GRACE_SECONDS), (shell.KILL, KILL_GRACE_SECONDS))
        for name, seconds in steps:
            await self._deliver(name, done)
            if await _ended(done, seconds):
                return
        await self._deliver(shell.KILL_ALL, done)
        for _ in range(LAST_LINES):  # others may read the first ones
            await self._send(shell.resync() + shell.answer(nonce))
            if await _ended(done, LAST_LINE_SECONDS):
                return
        self.fail(End("a command outlived SIGKILL"))

    async def _deliver(self, name: str, done: asyncio.Future[None]) -> None:
        """Signal the first process. One that has just ended takes no signal; the reading side then
        learns why."""
        try:
            await self._signal(name)
        except InfraError:
            if not await _ended(done, TERM_GRACE_SECONDS):
                raise

    async def _receive_all(self) -> None:
        """Feed the captures until the stream ends, then say why it ended."""
        slices = 0
        while True:
            channel, data = await self._stream.receive()
            if not data:
                break
            capture = self._captures.get(channel)
            if capture is None:
                continue  # a background job between two commands
            capture.feed(data)
            every = self._captures.values()
            if self._done is not None and all(c.exit_code is not None for c in every):
                if not self._done.done():
                    self._done.set_result(None)
            elif (dropped := sum(c.dropped for c in every) - FLOOD_BYTES) // FLOOD_SLICE > slices:
                slices = dropped // FLOOD_SLICE
                await asyncio.sleep(FLOOD_PAUSE_SECONDS)
        if self._end is not None:
            return
        end = await self._obituary()
        if (capture := self._captures.get(STDERR)) and (words := capture.content()[-300:].strip()):
            last = words.decode(errors="replace")
            end = replace(end, reason=f"{end.reason}; its last words: {last}")
        self.fail(end)


class SessionContainer:
    """The part of a `backend.Container` that is a conversation, whatever engine started it.

    `name` is what errors call it; the engine's own class sets it, and `_session` at the start.
    """

    name: str
    _session: Session | None = None

    @property
    def session(self) -> Session:
        """The conversation; only after the start."""
        if self._session is None:
            raise InfraError("was never started", where=self.name)
        return self._session

    @property
    def end(self) -> End | None:
        return self.session.end

    async def run(
        self, command: str, *, timeout: float, cwd: str, stop: asyncio.Event
    ) -> CommandOutput:
        try:
            return await self.session.run(command, timeout=timeout, cwd=cwd, stop=stop)
        except SandboxEndedError as error:
            return CommandOutput(
                exit_code=ENDED,
                stdout=b"",
                stderr=str(error).encode(),
                timed_out=False,
                truncated=False,
                seconds=0,
            )

    async def read(self, path: str, *, offset: int, length: int) -> bytes:
        with _file_errors(path):
            return await self.session.read(path, offset=offset, length=length)

    async def write(self, path: str, source: BinaryIO, mode: int) -> None:
        with _file_errors(path):
            await self.session.write(path, source, mode)

    async def pause(self) -> None:
        with _infra_errors(self.name):
            await self.session.pause()

    async def resume(self) -> None:
        with _infra_errors(self.name):
            await self.session.resume()

    async def kill_all(self, reason: str) -> None:
        await self.session.kill_all(reason)


def error_of(end: End) -> Exception:
    """What a call is answered whose container has ended so."""
    return SandboxEndedError(end.words) if end.own else InfraError(end.words)


@contextlib.contextmanager
def _file_errors(path: str) -> Iterator[None]:
    """An end of the sandbox's own is a file that cannot be read or written."""
    try:
        yield
    except SandboxEndedError as error:
        raise OSError(errno.EIO, str(error), path) from error


@contextlib.contextmanager
def _infra_errors(where: str) -> Iterator[None]:
    """What is asked of the sandbox as a whole cannot be done, whoever has ended it."""
    try:
        yield
    except SandboxEndedError as error:
        raise InfraError(str(error), where=where) from error


def _nonce() -> str:
    return secrets.token_hex(16)


def _check(done: CommandOutput, path: str) -> None:
    if done.exit_code != 0:
        raise OSError(errno.EIO, done.stderr.decode(errors="replace").strip(), path)


async def _ended(
    done: asyncio.Future[None], timeout: float, stop: asyncio.Event | None = None
) -> bool:
    """Wait for `done`, `stop` or the timeout (seconds); True when it is done."""
    waiters: set[asyncio.Future[None] | asyncio.Task[bool]] = {done}
    stopper = asyncio.create_task(stop.wait()) if stop is not None else None
    if stopper is not None:
        waiters.add(stopper)
    await asyncio.wait(waiters, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
    if stopper is not None:
        stopper.cancel()
    return done.done()
