"""What holds off clients that send too slowly or too much, on the control and the sandbox ports.

The head of a request must be whole within HEAD_SECONDS and HEAD_BYTES, else the connection is
closed. A body must come at SLOWEST_BODY bytes a second after GRACE_SECONDS, else the answer is 408.
The server's own time, between two reads of a body, does not count. An answer that is given before
the body has been read waits a moment for the rest and else ends the connection, so that nothing can
drip in afterwards.

Not covered: clients that read slowly; they hold up nobody but themselves.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import h11
from fastapi import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
HEAD_BYTES = 32 << 10
GRACE_SECONDS = 20.0
SLOWEST_BODY = 64 << 10  # bytes a second
LINGER_SECONDS, LINGER_BYTES = 1.0, 1 << 20


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, with a deadline for the head of each request.

    Give it to `uvicorn.Config(http=..., h11_max_incomplete_event_size=HEAD_BYTES)`.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._await_head()
        else:
            self._head_is_whole()

    def connection_lost(self, exc: Exception | None) -> None:
        self._head_is_whole()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        if self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_is_whole(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None


class BodyGuard:
    """ASGI middleware: see above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _has_body(scope):
            body = _Body(receive, send)
            await self._app(scope, body.receive, body.send)
        else:
            await self._app(scope, receive, send)


class _Body:
    """The two channels of one request that has a body."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._bytes = 0
        self._waited = 0.0  # seconds
        self._whole = False

    async def receive(self) -> Message:
        if self._whole:  # what still comes is the end of the connection
            return await self._receive()
        clock = asyncio.get_running_loop().time
        began = clock()
        left = GRACE_SECONDS + self._bytes / SLOWEST_BODY - self._waited
        try:
            async with asyncio.timeout(left):
                message = await self._receive()
        except TimeoutError as error:
            raise HTTPException(408, "the body came too slowly") from error
        self._waited += clock() - began
        self._bytes += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._whole:
            await self._linger()
            if not self._whole:
                headers = [*message.get("headers", ()), (b"connection", b"close")]
                message = {**message, "headers": headers}
        await self._send(message)

    async def _linger(self) -> None:
        """Drop what still comes of the body, for a moment: closing a connection with unread bytes
        resets it, and the client may lose the answer."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LINGER_SECONDS):
                left = LINGER_BYTES
                while not self._whole and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self._whole = not message.get("more_body", False)


def capped(receive: Receive, most: int) -> Receive:
    """`receive`, raising HTTPException 413 as soon as the body is larger than `most` bytes."""
    seen = 0

    async def read() -> Message:
        nonlocal seen
        message = await receive()
        seen += len(message.get("body", b""))
        if seen > most:
            raise HTTPException(413, f"larger than {most} bytes")
        return message

    return read


def _has_body(scope: Scope) -> bool:
    return any(
        (name == b"content-length" and value != b"0") or name == b"transfer-encoding"
        for name, value in scope["headers"]
    )
