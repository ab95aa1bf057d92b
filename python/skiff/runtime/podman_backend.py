"""Containers by podman: what is created, with which rights and limits, and how it ends.

A sandbox has no mounts of the host, no network unless asked, a user namespace of its own, the few
capabilities that package managers need, and no way to gain more. Memory, CPUs and processes are
bounded by cgroups where this user may set them; see `watchdog` for the rest. RLIMIT_NPROC (counted
per user namespace) and RLIMIT_FSIZE hold everywhere.

Inside an image the service is the host's (see `skiff.podman.bound_socket`). The store's folder is
worth binding as well, read-only: where it is not seen, layers are looked at less often, and that an
image was used is not noted.

Not covered: CPU limits without cgroups; pulling images.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
from collections.abc import Collection, Mapping
from collections.abc import Set as AbstractSet
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skiff.errors import InfraError
from skiff.image_use import mark_used
from skiff.podman import CPU_PERIOD, bound_socket, build, end_pause_process, isolation
from skiff.runtime.backend import (
    Container,
    ContainerRequest,
    End,
    ImageInfo,
    ImageNotFoundError,
    Limits,
)
from skiff.runtime.podman_api import PodmanApi, podman_words
from skiff.runtime.podman_service import PodmanService
from skiff.runtime.session import STOPPED, Session, SessionContainer, error_of
from skiff.runtime.shell import SPARE_PIDS
from skiff.runtime.watchdog import Watchdog

LABEL = "skiff.server"
# Of podman's default capabilities. Adding to none instead would give them to users but root too.
DROPPED_CAPABILITIES = ("AUDIT_WRITE", "MKNOD", "NET_RAW", "SETPCAP")
KILLED = 137  # exit status after SIGKILL
REMOVE_ATTEMPTS = 5
OBITUARY_SECONDS = 2.0
BACKSTOP_SECONDS = 60.0  # that the engine's own clock leaves to a restarting server


class PodmanContainer(SessionContainer):
    """A `backend.Container`."""

    def __init__(self, podman: PodmanApi, container_id: str, limits: Limits) -> None:
        self.id = container_id
        self.limits = limits
        self.name = f"container {container_id[:12]}"
        self._podman = podman
        self._first_pid = 0

    async def open(self, *, again: bool = False) -> None:
        """Attach to the running container and wait for its first process. `again`: another server
        was attached before, and the command that it left running is ended."""
        stream = await self._podman.attach(self.id)
        self._session = Session(
            stream,
            signal=self._signal,
            obituary=self._obituary,
            output_bytes=self.limits.output_bytes,
            processes=self.limits.pids,
        )
        await (self._session.reopen() if again else self._session.open())

    async def remove(self) -> None:
        if self._session is not None:
            self._session.fail(STOPPED)
        # The container first: closing its stdin would make it end by itself at the same moment.
        await remove_container(self._podman, self.id)
        if self._session is not None:
            await self._session.close()

    async def commit(self, image: str) -> None:
        """Keep its files as `image`. Its processes stand still meanwhile: podman's own pause takes
        a cgroup of ours."""
        repository, _, tag = (
            image.rpartition(":") if ":" in image.rpartition("/")[2] else (image, "", "latest")
        )
        paused = self.session.paused
        if not paused:
            await self.pause()
        try:
            await self._podman.call(
                "POST",
                "/commit",
                params={"container": self.id, "repo": repository, "tag": tag, "pause": "false"},
            )
        finally:
            if not paused:
                await self.resume()

    async def first_pid(self) -> int:
        if not self._first_pid:
            self._first_pid = (await self._inspect())["State"]["Pid"]
        return self._first_pid

    async def layer_bytes(self) -> int:
        return int((await self._inspect(size=True)).get("SizeRw") or 0)

    async def _inspect(self, *, size: bool = False) -> dict[str, Any]:
        found: dict[str, Any] = await self._podman.call(
            "GET", f"/containers/{self.id}/json", params={"size": str(size).lower()}
        )
        return found

    async def _signal(self, name: str) -> None:
        await self._podman.call("POST", f"/containers/{self.id}/kill", params={"signal": name})

    async def _obituary(self) -> End:
        """Why the attach stream has ended. podman learns of a container's end a little later."""
        deadline = time.monotonic() + OBITUARY_SECONDS
        while True:
            try:
                state = (await self._inspect())["State"]
            except InfraError as error:
                return End(f"the container is lost: {error.what}")
            if not state.get("Running"):
                return _end(state)
            if time.monotonic() > deadline:
                return End("podman has closed the stream of the container")
            await asyncio.sleep(0.1)


class PodmanBackend:
    """A `backend.Backend`. `server_id` labels the containers, so that only ours are swept.

    Builds keep to `build_cpus` CPUs, the others are left to the sandboxes.
    """

    def __init__(self, server_id: str, *, build_cpus: int = 1) -> None:
        self._server_id = server_id
        self._build_cpus = build_cpus
        bound = bound_socket()
        self._podman = PodmanService() if bound is None else PodmanApi(bound)
        self._store: Path | None = None
        self._controllers: frozenset[str] = frozenset()
        self._containers: set[PodmanContainer] = set()
        self._watchdog: asyncio.Task[None] | None = None

    async def open(self, known: Collection[str]) -> None:
        try:
            await self._podman.open()
            info = await self._podman.call("GET", "/info")
            self._controllers = frozenset(info["host"].get("cgroupControllers") or ())
            watch_memory = "memory" not in self._controllers
            if watch_memory and not self._podman.shares_pids():
                raise InfraError(
                    "has no memory cgroups, and its processes are not seen from here, so that"
                    " nothing would bound a sandbox's memory",
                    where=self._podman.where,
                    remedy="run this server's image in the host's pid namespace (without --pid or"
                    " --containall), or let the user have memory cgroups",
                )
            await asyncio.to_thread(isolation)  # asks a bound service once
            await self._sweep(frozenset(known))
        except BaseException:
            await self._podman.close()
            raise
        self._store = _visible(Path(info["store"]["graphRoot"]).parent)
        watchdog = Watchdog(self._living, self._store, memory=watch_memory)
        self._watchdog = asyncio.create_task(watchdog.run())

    async def start(self, request: ContainerRequest) -> PodmanContainer:
        answer = await self._podman.request("POST", "/containers/create", json=self._spec(request))
        if answer.is_error:
            image = quote(request.image, safe="")
            if (await self._podman.request("GET", f"/images/{image}/exists")).status_code == 404:
                raise ImageNotFoundError(request.image)
            raise InfraError(podman_words(answer), where=f"podman create {request.image}")
        container = PodmanContainer(self._podman, answer.json()["Id"], request.limits)
        try:
            await self._podman.call("POST", f"/containers/{container.id}/start")
            await container.open()
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        self._containers.add(container)
        if self._store is not None:
            with contextlib.suppress(OSError):  # a full disk; a sandbox that runs is worth more
                mark_used(self._store, request.image)
        return container

    async def adopt(self, request: ContainerRequest) -> PodmanContainer:
        answer = await self._podman.request("GET", f"/containers/{request.name}/json")
        if answer.status_code == 404:
            raise InfraError("its container is gone", where=f"container {request.name}")
        if answer.is_error:
            raise InfraError(podman_words(answer), where=f"podman inspect {request.name}")
        found = answer.json()
        container = PodmanContainer(self._podman, found["Id"], request.limits)
        try:
            if not found["State"].get("Running"):
                raise error_of(_end(found["State"]))
            await container.open(again=True)
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        self._containers.add(container)
        return container

    async def image(self, name: str) -> ImageInfo | None:
        if name in (".", ".."):
            return None  # they would lead to another page of podman's API
        answer = await self._podman.request("GET", f"/images/{quote(name, safe='')}/json")
        if answer.status_code == 404:
            return None
        if answer.is_error:
            raise InfraError(podman_words(answer), where=f"podman image inspect {name}")
        found = answer.json()
        created = datetime.fromisoformat(found["Created"])
        return ImageInfo(name, size_bytes=found["Size"], created=created.timestamp())

    async def build(self, context: Path, name: str) -> None:
        await asyncio.to_thread(build, context, name, cpus=self._build_cpus)

    async def snapshot(self, container: Container, name: str) -> None:
        if not isinstance(container, PodmanContainer):
            raise TypeError(f"{container} is not of this back end")
        await container.commit(name)

    async def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        others: Any = True
        try:
            await self._sweep(frozenset())
            others = await self._podman.call("GET", "/containers/json")
        finally:
            await self._podman.close()
        if isinstance(self._podman, PodmanService) and not others:
            end_pause_process()

    def _living(self) -> set[PodmanContainer]:
        self._containers = {c for c in self._containers if c.end is None}
        return self._containers

    async def _sweep(self, known: AbstractSet[str]) -> None:
        """Remove this server's containers, but for those of these names."""
        filters = f'{{"label":["{LABEL}={self._server_id}"]}}'
        found = await self._podman.call(
            "GET", "/containers/json", params={"all": "true", "filters": filters}
        )
        for container in found or ():
            if known.isdisjoint(container["Names"]):
                await remove_container(self._podman, container["Id"])

    def _spec(self, request: ContainerRequest) -> dict[str, Any]:
        """The create call's body (podman's SpecGenerator)."""
        limits = request.limits
        rlimits = dict(isolation().rlimits) | {
            "nproc": (limits.pids + SPARE_PIDS,) * 2,
            "fsize": (limits.disk_mib << 20,) * 2,
        }
        return {
            "name": request.name,
            "image": request.image,
            "entrypoint": ["sh"],
            "command": [],
            "stdin": True,
            "work_dir": "/",
            "env": dict(request.environment),
            "labels": {LABEL: self._server_id},
            "netns": {"nsmode": "slirp4netns" if limits.network else "none"},
            "use_image_resolve_conf": not limits.network,
            "cap_drop": list(DROPPED_CAPABILITIES),
            "no_new_privileges": True,
            "image_volume_mode": "anonymous",
            "log_configuration": {"driver": "none"},
            "timeout": _backstop(request),
            "sdnotifyMode": "ignore",
            "systemd": "false",
            "r_limits": [
                {"type": name, "soft": soft, "hard": hard} for name, (soft, hard) in rlimits.items()
            ],
            "resource_limits": self._cgroup_limits(request),
            "userns": {"nsmode": "private"},
            "idmappings": self._id_mappings(),
        }

    def _id_mappings(self) -> dict[str, Any]:
        # Rootless, the outer ids are those of podman's own user namespace.
        start, size = isolation().id_map or (0, 65536)
        mapping = [{"container_id": 0, "host_id": start, "size": size}]
        return {"UIDMap": mapping, "GIDMap": mapping}

    def _cgroup_limits(self, request: ContainerRequest) -> dict[str, Any]:
        limits = request.limits
        found: dict[str, Any] = {}
        if "memory" in self._controllers:
            found["memory"] = {"limit": limits.memory_mib << 20, "swap": limits.memory_mib << 20}
        if "pids" in self._controllers:
            found["pids"] = {"limit": limits.pids + SPARE_PIDS}
        if "cpu" in self._controllers:
            found["cpu"] = {"quota": int(limits.cpus * CPU_PERIOD), "period": CPU_PERIOD}
        return found


def _visible(folder: Path) -> Path | None:
    """`folder`, if this process has it before itself."""
    return folder if os.access(folder, os.R_OK) else None


def _backstop(request: ContainerRequest) -> int:
    """Seconds after which conmon kills the container, whether a server lives or not; 0: never."""
    lifetime = request.lifetime_seconds
    return 0 if lifetime is None else math.ceil(lifetime + BACKSTOP_SECONDS)


def _end(state: Mapping[str, Any]) -> End:
    """How the container has ended.

    Its first process is safe from signals of its own namespace, SIGKILL included, and its stdin
    stays open. So an exit is the doing of what ran there, and so is a SIGKILL of the kernel for the
    sandbox's own limit of memory. Any other SIGKILL (which `exit 137` may pretend) came from
    outside: an administrator, a host out of memory, conmon when the sandbox is too old. Without an
    exit status its monitor has ended, and that was not the sandbox either.
    """
    status, out_of_memory = state.get("ExitCode"), bool(state.get("OOMKilled"))
    own = out_of_memory or (isinstance(status, int) and 0 <= status != KILLED)
    memory = ", out of memory" if out_of_memory else ""
    return End(f"the container has ended (exit status {status}{memory})", own)


async def remove_container(podman: PodmanApi, container_id: str) -> None:
    """Kill and remove a container with its anonymous volumes; one that is gone is no error.

    podman refuses while the container is ending by itself, so a refusal is tried again.
    """
    for attempt in range(REMOVE_ATTEMPTS):
        answer = await podman.request(
            "DELETE",
            f"/containers/{container_id}",
            params={"force": "true", "timeout": "0", "v": "true", "ignore": "true"},
        )
        if answer.is_success or answer.status_code == 404:
            return
        await asyncio.sleep(0.1 * attempt)
    raise InfraError(podman_words(answer), where=f"podman rm {container_id[:12]}")
