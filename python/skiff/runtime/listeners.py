"""One listening port per sandbox, all served by the one uvicorn server of this process.

The stock client insists on a url without a path, so sandboxes can't share a port. A port costs a
socket and no task; a queued sandbox has it already, since its url is told before it runs.
"""

from __future__ import annotations

import asyncio
import socket
from dataclasses import dataclass, field
from typing import Protocol, cast

import uvicorn

from skiff.errors import InfraError
from skiff.runtime.sandboxes import Sandbox


def listen(host: str, port: int) -> socket.socket:
    """A bound TCP socket. Raises OSError.

    The protocol is named, or asyncio leaves TCP_NODELAY off and each answer costs 40 ms.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind((host, port))
        bound.listen(256)
    except BaseException:
        bound.close()
        raise
    return bound


class Connection(Protocol):
    """What is used here of uvicorn's protocol objects."""

    def shutdown(self) -> None:
        """Close when idle; otherwise after the answer that is being made."""
        ...


@dataclass(eq=False)
class Listener:
    sandbox: Sandbox
    socket: socket.socket
    server: asyncio.Server | None = None
    connections: list[Connection] = field(default_factory=list)


class Listeners:
    """`sandboxes.Ports` over a running uvicorn server. `advertised` is the host in the urls."""

    def __init__(self, server: uvicorn.Server, host: str, advertised: str) -> None:
        self._server = server
        self._host = host
        self._advertised = advertised
        self._listeners: dict[int, Listener] = {}

    def reserve(self, sandbox: Sandbox) -> None:
        try:
            bound = listen(self._host, sandbox.port)
        except OSError as error:
            raise InfraError(
                f"no port to listen on ({sandbox.port or 'any'}): {error.strerror}",
                where=sandbox.where,
                remedy="raise the limit of open files (ulimit -n) if there are too many",
            ) from error
        sandbox.port = bound.getsockname()[1]
        sandbox.url = f"http://{self._advertised}:{sandbox.port}"
        self._listeners[sandbox.port] = Listener(sandbox, bound)

    async def open(self, sandbox: Sandbox) -> None:
        port = sandbox.port
        listener = self._listeners[port]
        listener.server = await asyncio.get_running_loop().create_server(
            lambda: self._connection(port), sock=listener.socket, start_serving=False
        )
        await listener.server.start_serving()

    def close(self, sandbox: Sandbox) -> None:
        """Stop listening; connections end after the answer they are waiting for."""
        listener = self._listeners.get(sandbox.port)
        if listener is None or listener.sandbox is not sandbox:
            return  # it never got a port
        del self._listeners[sandbox.port]
        if listener.server is None:
            listener.socket.close()
        else:
            listener.server.close()
        for connection in listener.connections:
            connection.shutdown()

    def sandbox(self, port: int) -> Sandbox | None:
        """The sandbox that is served at `port`."""
        listener = self._listeners.get(port)
        return None if listener is None else listener.sandbox

    def _connection(self, port: int) -> asyncio.Protocol:
        state = self._server.server_state
        protocol = self._server.config.http_protocol_class(  # type: ignore[call-arg]
            config=self._server.config,
            server_state=state,
            app_state=self._server.lifespan.state,
        )
        listener = self._listeners[port]
        listener.connections = [c for c in listener.connections if c in state.connections]
        listener.connections.append(cast(Connection, protocol))
        return protocol
