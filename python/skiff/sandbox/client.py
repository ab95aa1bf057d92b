"""Client of the runtime servers: start a sandbox, run commands, move files, pause and stop it.

Every failure of the machinery (server gone, sandbox gone, start failed) is an InfraError; a command
that fails is a `CommandResult`. A sandbox that was ended by what ran in it (it killed its own first
process, it used up its memory) is no failure of the machinery: its commands fail with ENDED and the
words "sandbox ended", its files cannot be read or written. Only a start whose connection is refused
is tried again, on another node where there is one: a command may have run.
A server that is lost takes its own sandboxes with it and no others (see `nodes`). Sandboxes with a
lease are kept alive in the background while their client is open.
One event loop per client.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
import os
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from skiff.config import Config
from skiff.errors import ConfigError, InfraError, SkiffError, TaskError
from skiff.sandbox.key import read_key_file
from skiff.sandbox.leases import Leases
from skiff.sandbox.nodes import Nodes, published
from skiff.sandbox.wire import (
    HEALTH_SECONDS,
    HOLD_SECONDS,
    Wire,
    detail,
    lost,
    refused,
)

URL_VARIABLE = "SKIFF_RUNTIME_URL"
FOLDER_VARIABLE = "SKIFF_RUNTIME_FOLDER"
KEY_FILE_VARIABLE = "SKIFF_RUNTIME_KEY_FILE"
FILE_SECONDS = 300.0
PAUSE_SECONDS = 60.0
SNAPSHOT_SECONDS = 900.0
GRACE_SECONDS = 30.0  # beyond a command's own timeout: the server ends the command, not we
CANNOT_EXECUTE = 126  # a shell's exit code for what it can't execute
ENDED = 137  # a shell's exit code for what was killed
RESTART_SECONDS = 10.0  # a server that died is started again within this
RETRY_SECONDS = 0.3
BATCH = 64  # starts in one call


@dataclass(frozen=True)
class SandboxSpec:
    """One sandbox: image, where commands run by default, and its limits.

    session_id     makes starts idempotent: a second start of the same id is the same sandbox
    lease_seconds  it ends so long after its client is gone; None: as the server is configured
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
    lease_seconds: float | None = None
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
            lease_seconds=config.runtime.lease_seconds,
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
    """Starts sandboxes at one or more runtime servers. An async context manager.

    servers        their urls, or the folder in which they publish themselves, now and later
    start_seconds  bounds one start, waiting in the server's queue included
    """

    def __init__(
        self, servers: Sequence[str] | Path, key: str, *, start_seconds: float = 120
    ) -> None:
        if isinstance(servers, Path):
            folder = servers
            self._nodes = Nodes(lambda: published(folder), self._free_places)
        else:
            urls = list(dict.fromkeys(url.rstrip("/") for url in servers))
            if not urls:
                raise ConfigError("no runtime server is named", where=URL_VARIABLE)
            self._nodes = Nodes(lambda: urls, self._free_places)
        self._wire = Wire(key)
        self._leases = Leases(self._wire)
        self._start_seconds = start_seconds

    @classmethod
    def from_folder(
        cls, folder: Path, key_file: Path, *, start_seconds: float = 120
    ) -> RuntimeClient:
        """A client of all servers that publish themselves in `folder`. Raises ConfigError."""
        if not folder.is_dir():
            raise ConfigError("there is no such folder", where=str(folder))
        return cls(folder, read_key_file(key_file), start_seconds=start_seconds)

    @classmethod
    def from_env(cls, *, start_seconds: float = 120) -> RuntimeClient:
        """A client for the folder SKIFF_RUNTIME_FOLDER, else for SKIFF_RUNTIME_URL (comma
        separated), with the 0600 file named by SKIFF_RUNTIME_KEY_FILE. Raises ConfigError."""
        key_file = os.environ.get(KEY_FILE_VARIABLE)
        if not key_file:
            raise ConfigError(
                "is not set",
                where=KEY_FILE_VARIABLE,
                remedy="set it to the key file of the runtime server",
            )
        if folder := os.environ.get(FOLDER_VARIABLE):
            return cls.from_folder(Path(folder), Path(key_file), start_seconds=start_seconds)
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
        """Close the connections. Sandboxes are left running, those with a lease until it ends."""
        self._leases.close()
        await self._wire.close()

    async def start(self, spec: SandboxSpec) -> Sandbox:
        """Start a sandbox and wait until it is ready.

        Raises TaskError when the image does not exist, ConfigError when the key is refused,
        InfraError otherwise, with the back end's own words.
        """
        [result] = await self.start_batch([spec])
        if isinstance(result, SkiffError):
            raise result
        return result

    async def start_batch(self, specs: Sequence[SandboxSpec]) -> list[Sandbox | SkiffError]:
        """Start sandboxes on all nodes with few calls, and wait for them.

        Each result is a sandbox, or the error that `start` would raise for it. When the call is
        cancelled, all of them are stopped.
        """
        deadline = time.monotonic() + self._start_seconds
        places: dict[str, str] = {}
        try:
            groups = await self._spread(specs)
            results = await asyncio.gather(
                *(self._start_group(server, group, places, deadline) for server, group in groups)
            )
        except BaseException:
            await asyncio.shield(self._abandon(places))
            raise
        found = {key: result for group in results for key, result in group.items()}
        failed = [key for key, result in found.items() if isinstance(result, SkiffError)]
        await asyncio.shield(self._abandon({key: places[key] for key in failed if key in places}))
        return [found[spec.session_id] for spec in specs]

    async def reattach(self, session_id: str) -> Sandbox:
        """The running or paused sandbox of that session, whoever has started it.

        Raises InfraError when no server has it, or with the reason why it has ended.
        """
        reasons = []
        for server in await self._nodes.urls():
            try:
                answer = await self._wire.session(server, session_id)
            except InfraError as error:
                reasons.append(str(error))
                continue
            if answer["status"] in ("running", "paused"):
                self._hold(server, answer)
                return Sandbox(self._wire, self._leases, server, answer)
            reasons.append(f"{server}: {answer['status']}: {answer['pod_logs']}")
        raise InfraError(
            "is not running: " + "; ".join(reasons or ["there is no server"]),
            where=f"sandbox {session_id}",
        )

    @contextlib.asynccontextmanager
    async def sandbox(self, spec: SandboxSpec) -> AsyncIterator[Sandbox]:
        """A sandbox that is stopped at the end, whatever happens, cancellation included."""
        sandbox = await self.start(spec)
        try:
            yield sandbox
        finally:
            await asyncio.shield(sandbox.stop())

    async def health(self) -> dict[str, Any]:
        """The sum over all servers that answer: `free` places, and `sandboxes` by state.

        Raises InfraError when none answers.
        """
        free, sandboxes, errors = 0, Counter[str](), []
        servers = await self._nodes.urls()
        for found in await asyncio.gather(*(self._health(server) for server in servers)):
            if isinstance(found, InfraError):
                errors.append(found.what)
            else:
                free += found["free"]
                sandboxes.update(found["sandboxes"])
        if len(errors) == len(servers):
            words = "; ".join(errors) or "no runtime server has published itself"
            raise InfraError(words, where="runtime servers")
        return {"free": free, "sandboxes": dict(sandboxes)}

    async def check_key(self) -> None:
        """Call each server with the key.

        Raises ConfigError when it is refused, InfraError when no server answers.
        """
        errors = []
        servers = await self._nodes.urls()
        for server in servers:
            try:
                await self._wire.control("GET", f"{server}/registry_prefix", timeout=HEALTH_SECONDS)
            except InfraError as error:
                errors.append(str(error))
        if len(errors) == len(servers):
            words = "; ".join(errors) or "no runtime server has published itself"
            raise InfraError(words, where="runtime servers")

    async def _health(self, server: str) -> Mapping[str, Any] | InfraError:
        try:
            found: Mapping[str, Any] = await self._wire.control(
                "GET", f"{server}/health", timeout=HEALTH_SECONDS
            )
        except InfraError as error:
            return error
        return found

    async def _free_places(self, server: str) -> int:
        found = await self._health(server)
        if isinstance(found, InfraError):
            raise found
        return int(found["free"])

    async def _spread(self, specs: Sequence[SandboxSpec]) -> list[tuple[str, list[SandboxSpec]]]:
        """The servers that shall take them, each with at most BATCH."""
        deadline = time.monotonic() + min(RESTART_SECONDS, self._start_seconds)
        groups: dict[str, list[SandboxSpec]] = defaultdict(list)
        for spec in specs:
            groups[await self._server(deadline)].append(spec)
        return [
            (server, group[at : at + BATCH])
            for server, group in groups.items()
            for at in range(0, len(group), BATCH)
        ]

    async def _server(self, deadline: float) -> str:
        """A server for the next start, as soon as there is one."""
        while (server := await self._nodes.choose()) is None:
            if time.monotonic() > deadline:
                raise InfraError("no runtime server has published itself", where=FOLDER_VARIABLE)
            await asyncio.sleep(RETRY_SECONDS)
        return server

    async def _start_group(
        self, server: str, specs: Sequence[SandboxSpec], places: dict[str, str], deadline: float
    ) -> dict[str, Sandbox | SkiffError]:
        """Start them at one server; a result for each session id."""
        try:
            server, answers = await self._begin(server, specs, places)
        except SkiffError as error:
            return dict.fromkeys([spec.session_id for spec in specs], error)
        results = await asyncio.gather(
            *(
                self._ready(server, spec, answer, places, deadline)
                for spec, answer in zip(specs, answers, strict=True)
            )
        )
        return {spec.session_id: result for spec, result in zip(specs, results, strict=True)}

    async def _begin(
        self, server: str, specs: Sequence[SandboxSpec], places: dict[str, str]
    ) -> tuple[str, Sequence[Mapping[str, Any]]]:
        """Ask for starts; (the server that took them, its answers).

        A server that refuses the connection has taken nothing: another one is asked, if there is
        one. Where the connection broke the same server is asked again: the session ids make the
        starts idempotent. `places` learns where the sandboxes may be.
        """
        hold = min([HOLD_SECONDS, self._start_seconds, *(s.lease_seconds or 60 for s in specs)])
        body = {"starts": [_start_body(spec) for spec in specs], "hold_seconds": hold / 2}
        deadline = time.monotonic() + min(RESTART_SECONDS, self._start_seconds)
        tried: set[str] = set()
        while True:
            places.update((spec.session_id, server) for spec in specs)
            try:
                answers = await self._wire.control("POST", f"{server}/start_batch", json=body)
            except InfraError as error:
                if not lost(error) or time.monotonic() > deadline:
                    raise
                if refused(error):
                    self._nodes.lost(server)
                    tried.add(server)
            else:
                for answer in answers:
                    self._hold(server, answer)
                return server, answers
            other = await self._nodes.choose(without=tried)
            if other is None:
                tried.clear()  # it may be started again meanwhile
            if other is None or server not in tried:
                await asyncio.sleep(RETRY_SECONDS)
            else:
                server = other

    async def _ready(
        self,
        server: str,
        spec: SandboxSpec,
        answer: Mapping[str, Any],
        places: dict[str, str],
        deadline: float,
    ) -> Sandbox | SkiffError:
        """Wait while the server says `pending`."""
        try:
            while answer["pod_status"] == "pending":
                left = deadline - time.monotonic()
                if left <= 0:
                    return InfraError(
                        f"was not ready within {self._start_seconds:g} s",
                        where=f"sandbox of image {spec.image}",
                        remedy="raise runtime.max_sandboxes or runtime.start_seconds",
                    )
                try:
                    answer = await self._wire.session(
                        server, spec.session_id, min(HOLD_SECONDS, left)
                    )
                except InfraError as error:
                    if not lost(error):
                        raise
                    server, [answer] = await self._begin(server, [spec], places)
        except SkiffError as error:
            return error
        if answer["pod_status"] != "ready":
            return _start_error(spec.image, answer)
        return Sandbox(self._wire, self._leases, server, answer)

    def _hold(self, server: str, answer: Mapping[str, Any]) -> None:
        if answer["lease_seconds"] is not None:
            self._leases.hold(server, answer["runtime_id"], answer["lease_seconds"])

    async def _abandon(self, places: Mapping[str, str]) -> None:
        """Stop what failed or cancelled starts may have left."""

        async def stop(session_id: str, server: str) -> None:
            with contextlib.suppress(InfraError, ConfigError):
                answer = await self._wire.session(server, session_id)
                self._leases.drop(answer["runtime_id"])
                body = {"runtime_id": answer["runtime_id"]}
                await self._wire.control("POST", f"{server}/stop", json=body)

        await asyncio.gather(*(stop(*place) for place in places.items()))


class Sandbox:
    """A running sandbox; made by `RuntimeClient`. Its calls run one at a time."""

    def __init__(self, wire: Wire, leases: Leases, server: str, answer: Mapping[str, Any]) -> None:
        self._wire = wire
        self._leases = leases
        self.server = server
        self.runtime_id: str = answer["runtime_id"]
        self._url: str = answer["url"]
        self._headers = {"X-Session-API-Key": answer["session_api_key"]}
        self.session_id: str = answer["session_id"]
        self.image: str = answer["image"]

    async def run(self, command: str, *, timeout: float, cwd: str | None = None) -> CommandResult:
        """Run `command` in a fresh shell: bash where the image has it, else sh.

        Its process group is ended after `timeout` seconds. `cwd` defaults to the spec's workdir.
        A command that no shell can take (NUL, a megabyte) fails with exit code 126, one in a
        sandbox that was ended by what ran in it with 137.
        Raises InfraError when the sandbox or its server is gone.
        """
        body = {"command": command, "timeout": timeout, "cwd": cwd}
        try:
            answer = await self._call("POST", "/skiff/run", timeout + GRACE_SECONDS, json=body)
        except _SandboxEndedError as error:
            return _never_ran(ENDED, str(error))
        if answer.status_code == 422:
            return _never_ran(CANNOT_EXECUTE, detail(answer))
        if answer.is_error:
            raise InfraError(detail(answer), where=self._where)
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
        answer = await self._file("GET", path)
        return answer.content

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        """Write a file and make its parent folders. Raises OSError when it can't be written."""
        await self._file("PUT", path, {"mode": f"{mode:03o}"}, content=data)

    async def pause(self) -> None:
        """Stop its processes where they stand; until `resume`, calls raise InfraError."""
        await self._turn("pause", PAUSE_SECONDS)

    async def resume(self) -> None:
        """Let its processes go on; url and key are the same."""
        await self._turn("resume", PAUSE_SECONDS)

    async def snapshot(self, image: str) -> None:
        """Keep its files as an image from which other sandboxes can be started, on this node.

        `image` is below localhost/ or the server's registry prefix.
        """
        await self._turn("snapshot", SNAPSHOT_SECONDS, image=image)

    async def stop(self) -> None:
        """End the sandbox. Never raises: what can't be told now, the server finds out as idle."""
        self._leases.drop(self.runtime_id)
        with contextlib.suppress(InfraError, ConfigError):
            body = {"runtime_id": self.runtime_id}
            await self._wire.control("POST", f"{self.server}/stop", json=body)

    @property
    def _where(self) -> str:
        return f"sandbox {self.session_id} ({self.image})"

    async def _turn(self, call: str, timeout: float, **content: str) -> None:
        """One call about the sandbox as a whole, at its server."""
        body = {"runtime_id": self.runtime_id, **content}
        try:
            await self._wire.control("POST", f"{self.server}/{call}", timeout=timeout, json=body)
        except InfraError as error:
            raise InfraError(error.what, where=self._where) from error

    async def _call(self, method: str, path: str, timeout: float, **content: Any) -> httpx.Response:
        """One call of the sandbox's port. Raises InfraError, with the server's reason if any, and
        _SandboxEndedError."""
        try:
            answer = await self._wire.send(
                method, self._url + path, timeout, headers=self._headers, **content
            )
        except InfraError as error:
            raise await self._ended(error.what) from error
        if answer.status_code in (401, 502):
            raise await self._ended(detail(answer))
        return answer

    async def _ended(self, words: str) -> InfraError | _SandboxEndedError:
        """What to raise where the sandbox does not answer but with `words`."""
        ended = await self._wire.ended(self.server, self.session_id)
        if ended.get("failure") == "sandbox":
            return _SandboxEndedError(ended["pod_logs"])
        return InfraError(ended.get("pod_logs") or words, where=self._where)

    async def _file(
        self, method: str, path: str, params: Mapping[str, str] | None = None, **content: Any
    ) -> httpx.Response:
        """One call about a file. Raises OSError."""
        where = {"path": path, **(params or {})}
        try:
            answer = await self._call(method, "/skiff/file", FILE_SECONDS, params=where, **content)
        except _SandboxEndedError as error:
            raise OSError(errno.EIO, str(error), path) from error
        if answer.status_code == 404:
            raise FileNotFoundError(errno.ENOENT, "no such file in the sandbox", path)
        if answer.is_error:
            raise OSError(errno.EIO, detail(answer), path)
        return answer


class _SandboxEndedError(Exception):
    """What ran in the sandbox has ended it."""


def _never_ran(exit_code: int, words: str) -> CommandResult:
    return CommandResult(
        exit_code=exit_code,
        stdout=b"",
        stderr=words.encode(),
        timed_out=False,
        truncated=False,
        seconds=0,
    )


def _start_body(spec: SandboxSpec) -> dict[str, Any]:
    return {
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
        "lease_seconds": spec.lease_seconds,
    }


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
