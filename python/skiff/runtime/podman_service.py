"""The podman REST service as a child process, and its API over a unix socket.

The child dies with this process (also on SIGKILL); the containers do not: they are swept by their
label. The socket lies in a folder that only this user can enter.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import struct
import time
from pathlib import Path
from typing import Any

import httpx

from skiff.errors import InfraError
from skiff.podman import podman_environment, podman_run_dir

API = "/v4.0.0/libpod"
READY_SECONDS = 30.0
STOP_SECONDS = 10.0
ATTACH_SECONDS = 30.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class PodmanService:
    """Use: `await open()`, then `request` and `attach`, then `await close()`."""

    def __init__(self) -> None:
        self._folder = podman_run_dir() / f"serve-{os.getpid()}"
        self._socket = self._folder / "podman.sock"
        self._log = self._folder / "podman.log"
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(self._socket), limits=httpx.Limits(max_keepalive_connections=8)
            ),
            base_url=f"http://podman{API}",
            timeout=120,
        )

    async def open(self) -> None:
        """Start the service and wait until it answers. Raises InfraError with podman's words."""
        _remove_dead_folders(self._folder.parent)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await self._ensure()

    async def _ensure(self) -> None:
        """Start the service if it is not running, also when it has died; containers outlive it."""
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._socket.unlink(missing_ok=True)
            environment = podman_environment()
            with self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    "podman",
                    "system",
                    "service",
                    "--time=0",
                    f"unix://{self._socket}",
                    env=environment,
                    cwd=self._socket.parent,  # conmon leaves a file `oom` there after a kill
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we end it after the containers
                    preexec_fn=_die_with_parent,
                )
            deadline = time.monotonic() + READY_SECONDS
            while not await self._answers():
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise InfraError(self._words(), where="podman system service")
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        """End the service."""
        await self._client.aclose()
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def request(
        self, method: str, path: str, *, json: Any = None, params: dict[str, str] | None = None
    ) -> httpx.Response:
        """One API call; the caller judges the status. Raises InfraError when there is no answer."""
        await self._ensure()
        try:
            return await self._client.request(method, path, json=json, params=params)
        except httpx.HTTPError as error:
            raise InfraError(
                f"no answer ({type(error).__name__}): {self._words()}",
                where="podman system service",
            ) from error

    async def call(
        self, method: str, path: str, *, json: Any = None, params: dict[str, str] | None = None
    ) -> Any:
        """One API call that must succeed; its JSON answer. Raises InfraError."""
        answer = await self.request(method, path, json=json, params=params)
        if answer.is_error:
            raise InfraError(podman_words(answer), where="podman")
        return answer.json() if answer.content else None

    async def attach(self, container: str) -> AttachStream:
        """The streams of a running container. Raises InfraError."""
        await self._ensure()
        async with asyncio.timeout(ATTACH_SECONDS):
            reader, writer = await asyncio.open_unix_connection(str(self._socket), limit=1 << 20)
            query = "stream=true&stdin=true&stdout=true&stderr=true&logs=false"
            writer.write(
                f"POST {API}/containers/{container}/attach?{query} HTTP/1.1\r\n"
                "Host: podman\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
        status = head.split(b"\r\n", 1)[0].decode(errors="replace")
        if status.split(" ")[1:2] not in (["101"], ["200"]):
            writer.close()
            raise InfraError(f"attach refused: {status}", where="podman")
        return AttachStream(reader, writer)

    async def _answers(self) -> bool:
        try:
            return (await self._client.get("/_ping")).is_success
        except httpx.TransportError:
            return False

    def _words(self) -> str:
        """What the service has printed."""
        return self._log.read_text(errors="replace")[-500:].strip() or "no message"


class AttachStream:
    """A container's streams, as podman multiplexes them: 8 bytes of header, then the data."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> tuple[int, bytes]:
        """(1 stdout or 2 stderr, bytes); empty bytes at the end of the stream."""
        try:
            header = await self._reader.readexactly(8)
            (length,) = struct.unpack(">I", header[4:])
            return header[0], await self._reader.readexactly(length)
        except (asyncio.IncompleteReadError, ConnectionError):
            return 0, b""

    async def send(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        self._writer.close()


def podman_words(answer: httpx.Response) -> str:
    """The error text of an API answer."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text.strip() or f"status {answer.status_code}"
    return str(body.get("message") or body.get("cause") or body)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _remove_dead_folders(parent: Path) -> None:
    """Remove the folders of servers that were killed."""
    for folder in parent.glob("serve-*"):
        if not Path("/proc", folder.name.removeprefix("serve-")).exists():
            shutil.rmtree(folder, ignore_errors=True)
