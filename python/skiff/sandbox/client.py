"""Client of the runtime server: start a sandbox, run commands, move files, stop it.

Every failure of the machinery (server gone, sandbox gone, start failed) is an InfraError; a command
that fails is a `CommandResult`. Only a start whose connection is refused is tried again: a command
may have run.
One event loop per client. Not covered: reattaching to a sandbox of an earlier client.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import itertools
import os
import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from skiff.config import Config
from skiff.errors import ConfigError, InfraError, TaskError
from skiff.sandbox.key import read_key_file

URL_VARIABLE = "SKIFF_RUNTIME_URL"
KEY_FILE_VARIABLE = "SKIFF_RUNTIME_KEY_FILE"
HOLD_SECONDS = 20.0  # how long the server may hold one answer about a pending sandbox
CALL_SECONDS = 30.0  # of a call that does no work in a sandbox
FILE_SECONDS = 300.0
GRACE_SECONDS = 30.0  # beyond a command's own timeout: the server ends the command, not we
CANNOT_EXECUTE = 126  # a shell's exit code for what it can't execute
RESTART_SECONDS = 10.0  # a server that died is started again within this
RETRY_SECONDS = 0.3
KEEP_ALIVE_SECONDS = 30.0  # shorter than the server's, or a call could meet a closing connection


@dataclass(frozen=True)
class SandboxSpec:
    """One sandbox: image, where commands run by default, and its limits.

    `session_id` makes starts idempotent: a second start of the same id is the same sandbox.
    """

    image: str
    memory_mib: int
    cpus: float
    pids: int
    disk_mib: int
    output_bytes: int
    network: bool
    lifetime_seconds: float
    idle_seconds: float
    workdir: str = "/"
    env: Mapping[str, str] = field(default_factory=dict)
    session_id: str = field(default_factory=lambda: uuid.uuid4().hex)

    @classmethod
    def from_config(
        cls,
        config: Config,
        *,
        image: str,
        workdir: str = "/",
        env: Mapping[str, str] | None = None,
    ) -> SandboxSpec:
        """A sandbox with the limits of [sandbox] and the times of [runtime]."""
        limits = config.sandbox.model_dump()
        return cls(
            image=image,
            workdir=workdir,
            env=dict(env or {}),
            lifetime_seconds=config.runtime.lifetime_seconds,
            idle_seconds=config.runtime.idle_seconds,
            **limits,
        )


@dataclass(frozen=True)
class CommandResult:
    """How a command ended.

    exit_code  None: it was ended by its timeout
    truncated  bytes were left out of the middle of stdout or stderr, where a marker stands
    seconds    wall time in the sandbox
    """

    exit_code: int | None
    stdout: bytes
    stderr: bytes
    timed_out: bool
    truncated: bool
    seconds: float

    @property
    def text(self) -> str:
        """stdout, then stderr."""
        return (self.stdout + self.stderr).decode(errors="replace")


class RuntimeClient:
    """Starts sandboxes at one or more runtime servers, in turn. An async context manager.

    `start_seconds` bounds one start, waiting in the server's queue included.
    """

    def __init__(self, urls: Sequence[str], key: str, *, start_seconds: float = 120) -> None:
        if not urls:
            raise ConfigError("no runtime server is named", where=URL_VARIABLE)
        self._turns = itertools.cycle([url.rstrip("/") for url in urls])
        self._urls = tuple(urls)
        self._key = key
        self._start_seconds = start_seconds
        self._http = httpx.AsyncClient(
            trust_env=False,  # a proxy of the site must not see sandbox traffic
            timeout=CALL_SECONDS,
            limits=httpx.Limits(
                max_connections=None,
                max_keepalive_connections=None,
                keepalive_expiry=KEEP_ALIVE_SECONDS,
            ),
        )

    @classmethod
    def from_env(cls, *, start_seconds: float = 120) -> RuntimeClient:
        """A client for SKIFF_RUNTIME_URL (comma separated) and the 0600 file named by
        SKIFF_RUNTIME_KEY_FILE. Raises ConfigError."""
        key_file = os.environ.get(KEY_FILE_VARIABLE)
        if not key_file:
            raise ConfigError(
                "is not set",
                where=KEY_FILE_VARIABLE,
                remedy="set it to the key file of the runtime server",
            )
        urls = [url for url in os.environ.get(URL_VARIABLE, "").split(",") if url]
        return cls(urls, read_key_file(Path(key_file)), start_seconds=start_seconds)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections. Sandboxes are left running."""
        await self._http.aclose()

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox and wait until it is ready.

        Raises TaskError when the image does not exist, ConfigError when the key is refused,
        InfraError otherwise, with the back end's own words.
        """
        server = next(self._turns)
        try:
            answer = await self._ready(server, spec)
        except BaseException:
            await asyncio.shield(self._abandon(server, spec.session_id))
            raise
        if answer["pod_status"] != "ready":
            raise _start_error(spec.image, answer)
        return Sandbox(self, server, answer)

    @contextlib.asynccontextmanager
    async def sandbox(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """A sandbox that is stopped at the end, whatever happens, cancellation included."""
        sandbox = await self.start(spec)
        try:
            yield sandbox
        finally:
            await asyncio.shield(sandbox.stop())

    async def health(self) -> dict[str, Any]:
        """The first server's health: its sandboxes by state."""
        return await self._control("GET", f"{self._urls[0]}/health")

    async def _ready(self, server: str, spec: SandboxSpec) -> dict[str, Any]:
        """Start, and wait while the server says `pending`; its last answer."""
        deadline = time.monotonic() + self._start_seconds
        hold = min(HOLD_SECONDS, self._start_seconds)
        body = {
            "image": spec.image,
            "session_id": spec.session_id,
            "working_dir": spec.workdir,
            "environment": dict(spec.env),
            "resources": {
                "memory_mib": spec.memory_mib,
                "cpus": spec.cpus,
                "pids": spec.pids,
                "disk_mib": spec.disk_mib,
                "output_bytes": spec.output_bytes,
                "network": spec.network,
            },
            "lifetime_seconds": spec.lifetime_seconds,
            "idle_seconds": spec.idle_seconds,
            "hold_seconds": hold,
        }
        answer = await self._begin(f"{server}/start", body)
        while answer["pod_status"] == "pending":
            left = deadline - time.monotonic()
            if left <= 0:
                raise InfraError(
                    f"was not ready within {self._start_seconds:g} s",
                    where=f"sandbox of image {spec.image}",
                    remedy="raise runtime.max_sandboxes or runtime.start_seconds",
                )
            answer = await self._control(
                "GET",
                f"{server}/sessions/{spec.session_id}",
                params={"wait_seconds": min(hold, left)},
            )
        return answer

    async def _begin(self, url: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Ask for a start, also while a server that died is being started again.

        Only a refused connection is tried again: nothing has been asked for then.
        """
        deadline = time.monotonic() + min(RESTART_SECONDS, self._start_seconds)
        while True:
            try:
                return await self._control("POST", url, json=body)
            except InfraError as error:
                refused = isinstance(error.__cause__, httpx.ConnectError)
                if not refused or time.monotonic() > deadline:
                    raise
            await asyncio.sleep(RETRY_SECONDS)

    async def stop(self, server: str, runtime_id: str) -> None:
        """Stop a sandbox. A server that is gone, or does not know it, has nothing to stop."""
        with contextlib.suppress(InfraError, ConfigError):
            await self._control("POST", f"{server}/stop", json={"runtime_id": runtime_id})

    async def _abandon(self, server: str, session_id: str) -> None:
        """Stop what a failed or cancelled start may have left."""
        with contextlib.suppress(InfraError, ConfigError):
            answer = await self._control("GET", f"{server}/sessions/{session_id}")
            await self.stop(server, answer["runtime_id"])

    async def _control(self, method: str, url: str, **content: Any) -> dict[str, Any]:
        """One call of the server's own port; its JSON answer."""
        answer = await self.send(
            method,
            url,
            headers={"X-API-Key": self._key},
            timeout=CALL_SECONDS + HOLD_SECONDS,
            **content,
        )
        if answer.status_code == 401:
            raise ConfigError(
                "the runtime server refuses the key",
                where=url,
                remedy=f"{KEY_FILE_VARIABLE} must name the key file that the server was given",
            )
        if answer.is_error:
            raise InfraError(f"status {answer.status_code}: {_detail(answer)}", where=url)
        found: dict[str, Any] = answer.json()
        return found

    async def why_ended(self, server: str, session_id: str) -> str:
        """Why a sandbox has ended, as far as its server can say; else an empty string."""
        with contextlib.suppress(InfraError, ConfigError):
            answer = await self._control("GET", f"{server}/sessions/{session_id}")
            return str(answer["pod_logs"])
        return ""

    async def send(self, method: str, url: str, **content: Any) -> httpx.Response:
        """One exchange; InfraError when there is none."""
        if self._http.is_closed:
            raise InfraError("this client has been closed", where=f"runtime server {url}")
        try:
            return await self._http.request(method, url, **content)
        except httpx.HTTPError as error:
            words = str(error) or type(error).__name__
            raise InfraError(f"no answer: {words}", where=f"runtime server {url}") from error


class Sandbox:
    """A running sandbox; made by `RuntimeClient.start`. Its calls run one at a time."""

    def __init__(self, client: RuntimeClient, server: str, answer: Mapping[str, Any]) -> None:
        self._client = client
        self._server = server
        self.runtime_id: str = answer["runtime_id"]
        self._url: str = answer["url"]
        self._headers = {"X-Session-API-Key": answer["session_api_key"]}
        self.session_id: str = answer["session_id"]
        self.image: str = answer["image"]

    async def run(self, command: str, *, timeout: float, cwd: str | None = None) -> CommandResult:
        """Run `command` in a fresh shell: bash where the image has it, else sh.

        Its process group is ended after `timeout` seconds. `cwd` defaults to the spec's workdir.
        A command that no shell can take (NUL, a megabyte) fails with exit code 126.
        Raises InfraError when the sandbox or its server is gone.
        """
        body = {"command": command, "timeout": timeout, "cwd": cwd}
        answer = await self._call("POST", "/skiff/run", timeout + GRACE_SECONDS, json=body)
        if answer.status_code == 422:
            return CommandResult(
                exit_code=CANNOT_EXECUTE,
                stdout=b"",
                stderr=_detail(answer).encode(),
                timed_out=False,
                truncated=False,
                seconds=0,
            )
        if answer.is_error:
            raise InfraError(_detail(answer), where=self._where)
        found = answer.json()
        return CommandResult(
            exit_code=found["exit_code"],
            stdout=base64.b64decode(found["stdout"]),
            stderr=base64.b64decode(found["stderr"]),
            timed_out=found["timed_out"],
            truncated=found["truncated"],
            seconds=found["seconds"],
        )

    async def read(self, path: str) -> bytes:
        """The content of a file. Raises FileNotFoundError, or OSError when it can't be read."""
        answer = await self._call("GET", "/skiff/file", FILE_SECONDS, params={"path": path})
        self._check_file(answer, path)
        return answer.content

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file and make its parent folders. Raises OSError when it can't be written."""
        params = {"path": path, "mode": f"{mode:03o}"}
        answer = await self._call("PUT", "/skiff/file", FILE_SECONDS, params=params, content=data)
        self._check_file(answer, path)

    async def stop(self) -> None:
        """End the sandbox. Never raises: what can't be told now, the server finds out as idle."""
        await self._client.stop(self._server, self.runtime_id)

    @property
    def _where(self) -> str:
        return f"sandbox {self.session_id} ({self.image})"

    async def _call(self, method: str, path: str, timeout: float, **content: Any) -> httpx.Response:
        """One call of the sandbox's port. Raises InfraError, with the server's reason if any."""
        try:
            answer = await self._client.send(
                method, self._url + path, headers=self._headers, timeout=timeout, **content
            )
        except InfraError as error:
            reason = await self._client.why_ended(self._server, self.session_id)
            raise InfraError(reason or error.what, where=self._where) from error
        if answer.status_code in (401, 502):
            raise InfraError(_detail(answer), where=self._where)
        return answer

    def _check_file(self, answer: httpx.Response, path: str) -> None:
        if answer.status_code == 404:
            raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
        if answer.is_error:
            raise OSError(errno.EIO, _detail(answer), path)


def _start_error(image: str, answer: Mapping[str, Any]) -> TaskError | InfraError:
    if answer.get("failure") == "image":
        return TaskError(
            f"image {image} does not exist on the runtime server",
            where="sandbox start",
            remedy="build or import it first: `skiff images --help`",
        )
    return InfraError(
        f"the sandbox did not start: {answer.get('pod_logs') or answer['status']}",
        where=f"sandbox of image {image}",
    )


def _detail(answer: httpx.Response) -> str:
    try:
        body = answer.json()
    except ValueError:
        return answer.text
    detail = body.get("infra_error") or body.get("detail")
    if isinstance(detail, list):  # of a request that does not validate
        return "; ".join(fault["msg"] for fault in detail)
    return str(detail)
