"""podman's REST API over a unix socket, whoever has started its service.

The service may start later than we do (both sides of an image come up at once) and may be started
again; a call that meets none fails with its socket's name.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import time
from pathlib import Path
from typing import Any

import httpx

from skiff.errors import InfraError
from skiff.podman import SOCKET_VARIABLE

API = "/v4.0.0/libpod"
READY_SECONDS = 30.0
ATTACH_SECONDS = 30.0
LOOK_SECONDS = 0.02


class PodmanApi:
    """Use: `await open()`, then `request` and `attach`, then `await close()`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client = httpx.AsyncClient(
            transport=httpx.AsyncHTTPTransport(
                uds=str(path), limits=httpx.Limits(max_keepalive_connections=8)
            ),
            base_url=f"http://podman{API}",
            timeout=120,
        )

    @property
    def where(self) -> str:
        """What errors call the service."""
        return f"podman service at {self._path}"

    async def open(self) -> None:
        """Wait until the service answers. Raises InfraError."""
        deadline = time.monotonic() + READY_SECONDS
        while not await self._answers():
            if time.monotonic() > deadline:
                raise InfraError(
                    f"no answer within {READY_SECONDS:g} s",
                    where=self.where,
                    remedy="start it on the host (python -m skiff.runtime.podman_host), bind its"
                    f" folder into the image and name the socket in {SOCKET_VARIABLE}",
                )
            await asyncio.sleep(LOOK_SECONDS)

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    def shares_pids(self) -> bool:
        """Whether the pids that the service tells of are pids here, too. Raises InfraError."""
        with socket.socket(socket.AF_UNIX) as connection:
            try:
                connection.connect(str(self._path))
            except OSError as error:
                raise InfraError(str(error), where=self.where) from error
            size = struct.calcsize("3i")
            peer = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, size)
        pid: int = struct.unpack("3i", peer)[0]
        return pid != 0  # the kernel's answer for a process of another pid namespace

    async def request(
        self, method: str, path: str, *, json: Any = None, params: dict[str, str] | None = None
    ) -> httpx.Response:
        """One API call; the caller judges the status. Raises InfraError when there is no answer."""
        await self._ensure()
        try:
            return await self._client.request(method, path, json=json, params=params)
        except httpx.HTTPError as error:
            words = str(error) or type(error).__name__
            raise InfraError(f"no answer ({words}){self._words()}", where=self.where) from error

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
        try:
            async with asyncio.timeout(ATTACH_SECONDS):
                return await self._attach(container)
        except (OSError, asyncio.IncompleteReadError) as error:  # a TimeoutError is an OSError
            words = str(error) or type(error).__name__
            raise InfraError(f"attach failed ({words}){self._words()}", where=self.where) from error

    async def _attach(self, container: str) -> AttachStream:
        reader, writer = await asyncio.open_unix_connection(str(self._path), limit=1 << 20)
        query = "stream=true&stdin=true&stdout=true&stderr=true&logs=false"
        try:
            writer.write(
                f"POST {API}/containers/{container}/attach?{query} HTTP/1.1\r\n"
                "Host: podman\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n".encode()
            )
            head = await reader.readuntil(b"\r\n\r\n")
            status = head.split(b"\r\n", 1)[0].decode(errors="replace")
            if status.split(" ")[1:2] not in (["101"], ["200"]):
                raise InfraError(f"attach refused: {status}", where="podman")
        except BaseException:
            writer.close()
            raise
        return AttachStream(reader, writer)

    async def _ensure(self) -> None:
        """Before each call: whoever can start the service does it here."""

    def _words(self) -> str:
        """What is known of the service's own words, to be put after an error."""
        return ""

    async def _answers(self) -> bool:
        try:
            return (await self._client.get("/_ping")).is_success
        except httpx.TransportError:
            return False


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
