"""The runtime server process: opens the ports, publishes where it is, runs until SIGTERM.

`main` is what `entrypoints/runtime` calls. Its state (the server id that labels its containers, and
the journal) lies beside the configuration file, so that a server that is started again takes over
the sandboxes of a killed one. SIGTERM ends the sandboxes, too.

Several nodes share one run folder: where the rendezvous is a folder, each server writes a file of
its own there and keeps its state in a folder of its own. The file says which start of the server
wrote it: the attempt, Slurm's job, and a nonce that /health repeats.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import logging
import os
import resource
import secrets
import signal
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import uvicorn
import uvloop
from starlette.types import ASGIApp, Receive, Scope, Send

from skiff.apptainer import apptainer_root
from skiff.config import Config, load_run_config
from skiff.errors import ConfigError, InfraError
from skiff.files import write_atomic
from skiff.runtime.apptainer_backend import ApptainerBackend
from skiff.runtime.backend import Backend
from skiff.runtime.builds import Builds
from skiff.runtime.control_api import control_app
from skiff.runtime.guards import HEAD_BYTES, BodyGuard, GuardedProtocol
from skiff.runtime.journal import Journal
from skiff.runtime.listeners import Listeners, listen
from skiff.runtime.metrics import MeasuredBackend, Metrics
from skiff.runtime.podman_backend import PodmanBackend
from skiff.runtime.sandbox_api import sandbox_app
from skiff.runtime.sandboxes import Sandboxes
from skiff.sandbox.key import read_key_file

STATE_FOLDER = "runtime"
KEEP_ALIVE_SECONDS = 75  # longer than the client's, or a call could meet a closing connection
SHUTDOWN_SECONDS = 5

log = logging.getLogger("skiff.runtime")


def main(
    config_file: Path,
    rendezvous: Path,
    key_file: Path,
    *,
    port: int | None = None,
    attempt: int = 1,
    job: str = "",
) -> None:
    """Serve until SIGTERM or SIGINT, on `port` rather than the profile's when given. `attempt`
    (of the run) and `job` (Slurm's) are published.

    Raises SkiffError when the server can't come up.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    config = load_run_config(config_file)
    key = read_or_make_key(key_file)
    state = config_file.absolute().parent / STATE_FOLDER
    if rendezvous.is_dir():
        node = socket.gethostname()
        state, rendezvous = state / node, rendezvous / f"runtime-{node}.json"
    _raise_open_files()
    wanted = config.runtime.port if port is None else port
    with _listener(config.runtime.host, wanted) as listener:
        start = {"attempt": attempt, "job": job, "nonce": secrets.token_hex(8)}
        uvloop.run(serve(config, listener, key, key_file, rendezvous, state, start))


async def serve(
    config: Config,
    listener: socket.socket,
    key: str,
    key_file: Path,
    rendezvous: Path,
    state: Path,
    start: Mapping[str, Any],
) -> None:
    """Serve on `listener`; write `rendezvous` when ready, remove it at the end. `start` is
    published: attempt, job, nonce."""
    switch = _Switch()
    server = _Server(
        uvicorn.Config(
            switch,
            http=GuardedProtocol,
            h11_max_incomplete_event_size=HEAD_BYTES,
            ws="none",
            loop="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    host, port = listener.getsockname()[:2]
    advertised = socket.getfqdn() if host in ("0.0.0.0", "::") else host
    ports = Listeners(server, host, advertised)
    metrics = Metrics()
    backend = MeasuredBackend(_backend(config, _server_id(state)), metrics)
    sandboxes = Sandboxes(config.runtime, backend, ports, Journal(state / "journal.sqlite"))
    switch.control_port = port
    builds = Builds(
        sandboxes.backend,
        state / "builds",
        concurrent=config.runtime.concurrent_builds,
        context_bytes=config.runtime.build_context_mib << 20,
    )
    metrics.watch(sandboxes, builds)
    switch.control = BodyGuard(control_app(sandboxes, builds, metrics, config, key, start["nonce"]))
    switch.sandbox = BodyGuard(sandbox_app(ports.sandbox))
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    builds.open()
    await sandboxes.open()
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        place = {"url": f"http://{advertised}:{port}", "host": advertised, "port": port}
        _publish(rendezvous, {**place, **start}, key_file, config.runtime.max_sandboxes)
        log.info("serving sandboxes at %s:%d", advertised, port)
        stopping = asyncio.create_task(stopped.wait())
        await asyncio.wait([serving, stopping], return_when=asyncio.FIRST_COMPLETED)
        log.info("shutting down: %s", sandboxes.counts())
    finally:
        rendezvous.unlink(missing_ok=True)  # noqa: ASYNC240 - one unlink, at the end
        await builds.close()
        await sandboxes.close()
    server.should_exit = True
    await serving


def read_or_make_key(path: Path) -> str:
    """The run's key; a new one, readable only by its owner, when there is no such file.

    Raises ConfigError when others can read it.
    """
    if not path.exists():
        write_atomic(path, secrets.token_urlsafe(32) + "\n", mode=0o600)
    return read_key_file(path)


def _publish(rendezvous: Path, place: Mapping[str, Any], key_file: Path, places: int) -> None:
    """Say where the server is, now that it answers."""
    place = {
        **place,
        "pid": os.getpid(),
        "key_file": str(key_file.absolute()),
        "started": time.time(),
        "places": places,
    }
    write_atomic(rendezvous, json.dumps(place, indent=1) + "\n")


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: the sandboxes end before the server."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class _Switch:
    """Passes a request on to the control or to the sandbox application, by its port."""

    control_port: int
    control: ASGIApp
    sandbox: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = scope["server"][1] == self.control_port
        await (self.control if own else self.sandbox)(scope, receive, send)


def _listener(host: str, port: int) -> socket.socket:
    try:
        return listen(host, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken",
                where="runtime.port",
                remedy="set runtime.port to 0 (any free port) or end the program that has it",
            ) from error
        raise InfraError(
            f"cannot listen on {host}: {error.strerror}",
            where="runtime.host",
            remedy="set runtime.host to an address of this machine",
        ) from error


def _backend(config: Config, server_id: str) -> Backend:
    if config.runtime.backend == "apptainer":
        root = apptainer_root()
        return ApptainerBackend(server_id, root, config.runtime.sif_folder or root / "images")
    return PodmanBackend(server_id, build_cpus=config.runtime.build_cpus)


def _raise_open_files() -> None:
    """Allow as many open files as this user may have: each sandbox, also a queued one, has a
    socket."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _server_id(state: Path) -> str:
    """The id in `state`; made at the first start."""
    path = state / "server_id"
    if not path.exists():
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, secrets.token_hex(8))
    return path.read_text()
