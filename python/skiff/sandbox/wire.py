"""The HTTP calls below the client: one exchange each, and what its failure means."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx

from skiff.errors import ConfigError, InfraError

HOLD_SECONDS = 20.0  # how long the server may hold one answer about a pending sandbox
CALL_SECONDS = 30.0  # of a call that does no work in a sandbox
CONNECT_SECONDS = 5.0
HEALTH_SECONDS = 3.0  # after which a node counts as gone
KEEP_ALIVE_SECONDS = 30.0  # shorter than the server's, or a call could meet a closing connection


class Wire:
    """Connections to servers and sandboxes. `key` opens the servers' own ports."""

    def __init__(self, key: str) -> None:
        self._key = key
        self._http = httpx.AsyncClient(
            trust_env=False,  # a proxy of the site must not see sandbox traffic
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
        )

    async def close(self) -> None:
        await self._http.aclose()

    async def control(
        self, method: str, url: str, *, timeout: float = CALL_SECONDS + HOLD_SECONDS, **content: Any
    ) -> Any:
        """One call of a server's own port; its JSON answer.

        Raises ConfigError when the key is refused, else InfraError.
        """
        answer = await self.send(method, url, timeout, headers={"X-API-Key": self._key}, **content)
        if answer.status_code == 401:
            raise ConfigError(
                "the runtime server refuses the key",
                where=url,
                remedy="give the client (SKIFF_RUNTIME_KEY_FILE) the key file of the server",
            )
        if answer.is_error:
            raise InfraError(f"status {answer.status_code}: {detail(answer)}", where=url)
        return answer.json()

    async def session(
        self, server: str, session_id: str, wait_seconds: float = 0
    ) -> Mapping[str, Any]:
        """What a server says about a session, as soon as it is no longer pending."""
        found: Mapping[str, Any] = await self.control(
            "GET",
            f"{server}/sessions/{quote(session_id, safe='')}",
            params={"wait_seconds": wait_seconds},
        )
        return found

    async def ended(self, server: str, session_id: str) -> Mapping[str, Any]:
        """What a server says about a session that does not answer; nothing when it cannot."""
        with contextlib.suppress(InfraError, ConfigError):
            return await self.session(server, session_id)
        return {}

    async def send(self, method: str, url: str, timeout: float, **content: Any) -> httpx.Response:
        """One exchange; InfraError when there is none. `timeout` in seconds."""
        if self._http.is_closed:
            raise InfraError("this client has been closed", where=f"runtime server {url}")
        bounds = httpx.Timeout(timeout, connect=min(timeout, CONNECT_SECONDS))
        try:
            return await self._http.request(method, url, timeout=bounds, **content)
        except httpx.HTTPError as error:
            words = str(error) or type(error).__name__
            raise InfraError(f"no answer: {words}", where=f"runtime server {url}") from error


def refused(error: InfraError) -> bool:
    """Nothing was asked for: there was no connection."""
    return isinstance(error.__cause__, (httpx.ConnectError, httpx.ConnectTimeout))


def lost(error: InfraError) -> bool:
    """There was no connection, or it broke: the server is gone, or is being started again."""
    return refused(error) or isinstance(
        error.__cause__, (httpx.ReadError, httpx.WriteError, httpx.RemoteProtocolError)
    )


def detail(answer: httpx.Response) -> str:
    """A failed answer in words."""
    try:
        body = answer.json()
    except ValueError:
        return answer.text
    found = body.get("infra_error") or body.get("detail")
    if isinstance(found, list):  # of a request that does not validate
        return "; ".join(fault["msg"] for fault in found)
    return str(found)
