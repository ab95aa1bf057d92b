"""Who may call a sandbox's port, and with how much: checked before a body is read.

A call needs the sandbox's own key, compared in constant time; nothing switches that off. Without
the key only health and the API's description are answered.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from skiff.runtime.faults import failed
from skiff.runtime.guards import capped
from skiff.runtime.reading import FILE_BYTES
from skiff.runtime.sandboxes import Sandbox

OPEN_PATHS = frozenset({"/health", "/alive", "/ready", "/server_info", "/openapi.json"})
UPLOAD_PATHS = frozenset({"/skiff/file", "/api/file/upload", "/upload_file"})
KEY_HEADER = "X-Session-API-Key"
MESSAGE_BYTES = 8 << 20  # a command of a megabyte, each byte escaped as JSON
FORM_BYTES = 1 << 20  # of an upload, beyond the file


class SandboxAccess:
    """ASGI middleware; `request.state.sandbox` is the sandbox, in use until the call ends."""

    def __init__(self, app: ASGIApp, find: Callable[[int], Sandbox | None]) -> None:
        self._app = app
        self._find = find

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sandbox = self._find(scope["server"][1])
        if sandbox is None:
            await failed(502, "this sandbox has ended", infra=True)(scope, receive, send)
            return
        scope.setdefault("state", {})["sandbox"] = sandbox
        path = scope["path"]
        if path in OPEN_PATHS:
            await self._app(scope, receive, send)
        elif not hmac.compare_digest(_key(scope), sandbox.key.encode()):
            await failed(401, f"{KEY_HEADER} is missing or wrong")(scope, receive, send)
        else:
            most = FILE_BYTES + FORM_BYTES if path in UPLOAD_PATHS else MESSAGE_BYTES
            with sandbox.in_use():
                await self._app(scope, capped(receive, most), send)


def _key(scope: Scope) -> bytes:
    wanted = KEY_HEADER.lower().encode()
    return next((value for name, value in scope["headers"] if name == wanted), b"")
