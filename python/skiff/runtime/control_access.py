"""Who may call the server's own port, and with how much: checked before a body is read.

A call needs the run's key, compared in constant time; nothing switches that off. Without the key
only health and the API's description are answered. A scraper of /metrics may send the key as
`Authorization: Bearer`, since Prometheus can send no header of ours.
"""

from __future__ import annotations

import hmac

from starlette.types import ASGIApp, Receive, Scope, Send

from skiff.runtime.faults import failed
from skiff.runtime.guards import capped

OPEN_PATHS = frozenset({"/health", "/alive", "/ready", "/openapi.json"})
KEY_HEADER = "X-API-Key"
MESSAGE_BYTES = 1 << 20
FORM_BYTES = 1 << 20  # of /build, beyond the context


class ControlAccess:
    """ASGI middleware. `context_bytes` is the largest context of a build, before base64."""

    def __init__(self, app: ASGIApp, key: str, context_bytes: int) -> None:
        self._app = app
        self._key = key.encode()
        self._build_bytes = context_bytes * 4 // 3 + FORM_BYTES

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
        elif scope["path"] not in OPEN_PATHS and not self._authorized(scope):
            await failed(401, f"{KEY_HEADER} is missing or wrong")(scope, receive, send)
        else:
            most = self._build_bytes if scope["path"] == "/build" else MESSAGE_BYTES
            await self._app(scope, capped(receive, most), send)

    def _authorized(self, scope: Scope) -> bool:
        headers = dict(scope["headers"])
        sent = headers.get(KEY_HEADER.lower().encode())
        if sent is None and scope["path"] == "/metrics":
            sent = headers.get(b"authorization", b"").removeprefix(b"Bearer ")
        return hmac.compare_digest(sent or b"", self._key)
