"""Sandboxes by Apptainer, without setuid, daemon or FUSE; also inside another image.

A sandbox is the image's own `sh` in user, mount, pid, ipc, uts and network namespaces of its own,
on an overlay of which only the upper folder is its own. It is root there with the few capabilities
that package managers need and no way to gain more, and an id that owns nothing outside. No path,
device, name or network of the host is in it, unless the profile opens the network: then it is the
host's, since making another one takes rights.

The overlay and /dev are ours: Apptainer's own overlay lacks `userxattr`, so a folder that is
removed in it cannot be made again, and its /dev can be filled without end. What stays outside of a
sandbox is Apptainer's waiting parent process (5 MiB of its own).

RLIMIT_NPROC (counted per user namespace since Linux 5.14, before that per user) and RLIMIT_FSIZE
hold; memory and disk are watched.

Not covered: CPU limits, as no cgroup is ours to write (the kernel shares the CPUs among sandboxes);
an image's USER, as changing to it takes ids that a namespace inside an image lacks, and a program
that small images lack: all commands run as the sandbox's root; building of images.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Collection
from pathlib import Path

from skiff.apptainer import (
    apptainer_environment,
    check_mapped,
    check_overlay,
    find_apptainer,
    own,
    start_mapped,
)
from skiff.errors import InfraError
from skiff.runtime.backend import Container, ContainerRequest, End, ImageInfo, Limits
from skiff.runtime.fifos import FifoStream, first_process, holders, make_fifos, sandbox_ends
from skiff.runtime.rootfs import RootFolders, disk_bytes, keep_snapshot
from skiff.runtime.session import STOPPED, Session, SessionContainer
from skiff.runtime.watchdog import Watchdog

END_SECONDS = 20.0
SIGNALLED = 128  # exit statuses from here on tell of a signal
CAPABILITIES = (
    "CHOWN,DAC_OVERRIDE,FOWNER,FSETID,KILL,NET_BIND_SERVICE,SETFCAP,SETGID,SETUID,SYS_CHROOT"
)
# $1: root folder of the image, $2: bytes of one file / 512. The rest is run.
_PREPARE = """
mkdir upper work merged dev &&
mount -t overlay -o "userxattr,lowerdir=$1,upperdir=upper,workdir=work" overlay merged &&
mount -t tmpfs -o size=64k,mode=755,nosuid tmpfs dev &&
mkdir dev/mqueue dev/pts dev/shm &&
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts dev/pts &&
mount -t tmpfs -o size=64m,mode=1777,nosuid,nodev tmpfs dev/shm &&
ln -s pts/ptmx dev/ptmx && ln -s /proc/self/fd dev/fd && ln -s fd/0 dev/stdin &&
ln -s fd/1 dev/stdout && ln -s fd/2 dev/stderr || exit
for name in full null random tty urandom zero; do
    [ -e "/dev/$name" ] || continue # Skiff's own image has no /dev/full
    : >"dev/$name" && mount --bind "/dev/$name" "dev/$name" || exit
done
ulimit -c 0 && ulimit -S -n 1024 && ulimit -f "$2" || exit
shift 2
exec "$@"
"""
# What the sandbox starts with: nothing of Apptainer's own settings is left to its commands.
_ENTER = (
    "for name in APPNAME BIND COMMAND CONTAINER ENVIRONMENT NAME NO_EVAL; do "
    'unset "APPTAINER_$name" "SINGULARITY_$name"; done; unset PROMPT_COMMAND PS1 name; exec sh'
)


class ApptainerContainer(SessionContainer):
    """A `backend.Container`. `folder` holds its streams and its disk."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.limits = limits
        self.folder = folder
        self.name = f"sandbox {folder.name}"
        self._starter: subprocess.Popen[bytes] | None = None  # None: an earlier server's child
        self._first: int | None = None  # as a pidfd

    @property
    def lower(self) -> Path:
        """The root folder of its image."""
        return (self.folder / "image").resolve()

    @property
    def upper(self) -> Path:
        """What it has written."""
        return self.folder / "disk" / "upper"

    async def begin(self, lower: Path, request: ContainerRequest) -> None:
        """Make the folder and start the sandbox; return when it answers."""
        try:
            self.folder.mkdir(parents=True, mode=0o711)
        except FileExistsError as error:
            raise InfraError("there is a sandbox of that name", where=self.folder.name) from error
        streams, disk = self.folder / "streams", self.folder / "disk"
        (self.folder / "image").symlink_to(lower)
        streams.mkdir(mode=0o700)
        make_fifos(streams)
        disk.mkdir(mode=0o700)
        own(disk)
        environment = apptainer_environment() | {
            f"APPTAINERENV_{name}": value for name, value in request.environment.items()
        }
        with sandbox_ends(streams) as (stdin, stdout, stderr):
            self._starter = await asyncio.to_thread(
                start_mapped,
                _command(lower, disk, request.limits),
                environment=environment,
                cwd=disk,
                stdin=stdin,
                stdout=stdout,
                stderr=stderr,
            )
            stream = FifoStream(streams)
        self._session = self._converse(stream)
        await self._session.open()
        await self._hold()

    async def join(self) -> None:
        """Take the sandbox over from an earlier server. A command that runs in it is ended."""
        if not self.folder.exists():
            raise InfraError("there is no sandbox of that name", where=self.folder.name)
        await self._hold()
        self._session = self._converse(FifoStream(self.folder / "streams"))
        await self._session.reopen()

    async def remove(self) -> None:
        if self._session is not None:
            self._session.fail(STOPPED)
        await asyncio.to_thread(remove_sandbox, self.folder)
        if self._starter is not None:
            await asyncio.to_thread(self._starter.wait)
        if self._session is not None:
            await self._session.close()
        if self._first is not None:
            os.close(self._first)
            self._first = None

    async def first_pid(self) -> int:
        pid = await asyncio.to_thread(first_process, self.folder / "streams")
        if pid is None:
            raise InfraError("has ended", where=self.name)
        return pid

    async def layer_bytes(self) -> int:
        return await asyncio.to_thread(disk_bytes, self.upper)

    def _converse(self, stream: FifoStream) -> Session:
        return Session(
            stream,
            signal=self._signal,
            obituary=self._obituary,
            output_bytes=self.limits.output_bytes,
            processes=self.limits.pids,
        )

    async def _hold(self) -> None:
        """Keep a descriptor of the first process: its number may go to another one."""
        pid = await self.first_pid()
        self._first = os.pidfd_open(pid)
        if await asyncio.to_thread(first_process, self.folder / "streams") != pid:
            raise InfraError("has ended", where=self.name)

    async def _signal(self, name: str) -> None:
        if self._first is None:
            return  # it has not begun to answer: its end is what is wanted
        try:
            signal.pidfd_send_signal(self._first, signal.Signals[name])
        except ProcessLookupError as error:
            raise InfraError("has ended", where=self.name) from error

    async def _obituary(self) -> End:
        """Its first process is safe from signals of its own namespace and its stdin stays open: an
        exit is the doing of what ran there, a SIGKILL (which `exit 137` may pretend) came from
        outside. Only the server that has started a sandbox learns of either."""
        if self._starter is None:
            return End("the first process of the sandbox has ended")
        status = await asyncio.to_thread(self._starter.wait)
        own = 0 <= status < SIGNALLED
        return End(f"the first process of the sandbox has ended (exit status {status})", own)


class ApptainerBackend:
    """A `backend.Backend`.

    server_id  only sandboxes of this id are swept
    state      folder on a local disk, see `skiff.apptainer.apptainer_root`; servers may share it
    images     folder of SIFs and root folders that images are named by; may be shared by nodes
    """

    def __init__(self, server_id: str, state: Path, images: Path) -> None:
        self._state = state
        self._sandboxes = state / "sandboxes" / server_id
        self._roots = RootFolders(state / "roots", images)
        self._containers: set[ApptainerContainer] = set()
        self._watchdog: asyncio.Task[None] | None = None

    async def open(self, known: Collection[str]) -> None:
        await asyncio.to_thread(self._prepare)
        await self._sweep(set(known))
        watchdog = Watchdog(self._living, self._state, memory=True)
        self._watchdog = asyncio.create_task(watchdog.run())

    async def start(self, request: ContainerRequest) -> ApptainerContainer:
        lower = await self._roots.find(request.image)
        container = ApptainerContainer(self._sandboxes / request.name, request.limits)
        try:
            await container.begin(lower, request)
        except BaseException:
            await asyncio.shield(container.remove())
            raise
        self._containers.add(container)
        return container

    async def adopt(self, request: ContainerRequest) -> ApptainerContainer:
        container = ApptainerContainer(self._sandboxes / request.name, request.limits)
        await container.join()
        self._containers.add(container)
        return container

    async def image(self, name: str) -> ImageInfo | None:
        return await self._roots.info(name)

    async def build(self, context: Path, name: str) -> None:
        raise InfraError(
            "this back end cannot build from a Dockerfile",
            where=name,
            remedy="build it by podman (runtime.backend = 'podman') and make a SIF of it",
        )

    async def snapshot(self, container: Container, name: str) -> None:
        if not isinstance(container, ApptainerContainer):
            raise TypeError(f"{container} is not of this back end")
        target = self._roots.snapshot(name)
        if target.exists():  # sandboxes may stand on it
            raise InfraError("there is a snapshot of that name", where=name)
        stood = container.session.paused
        if not stood:
            await container.pause()
        try:
            await asyncio.to_thread(keep_snapshot, container.lower, container.upper, target)
        finally:
            if not stood:
                await container.resume()

    async def close(self) -> None:
        if self._watchdog is not None:
            self._watchdog.cancel()
        await self._sweep(set())
        with contextlib.suppress(OSError):  # another server of this id has one left
            self._sandboxes.rmdir()

    def _prepare(self) -> None:
        find_apptainer()
        for folder in (self._state / "roots", self._sandboxes):
            folder.mkdir(mode=0o711, parents=True, exist_ok=True)
        check_overlay(self._state)
        self._roots.sweep()

    async def _sweep(self, known: Collection[str]) -> None:
        """Remove our sandboxes but the known ones."""
        living = {container.folder: container for container in self._containers}
        for folder in sorted(self._sandboxes.glob("*")):
            if folder.name in known:
                continue
            if (container := living.get(folder)) is not None:
                await container.remove()
            else:
                await asyncio.to_thread(remove_sandbox, folder)

    def _living(self) -> set[ApptainerContainer]:
        self._containers = {c for c in self._containers if c.end is None}
        return self._containers


def remove_sandbox(folder: Path) -> None:
    """End every process of a sandbox and remove its folder; one that is gone is no error.

    Process 1 takes all others of its namespace with it. Raises InfraError when one stays.
    """
    if not folder.exists():
        return
    deadline = time.monotonic() + END_SECONDS
    while left := holders(folder / "streams"):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            raise InfraError("a process outlived SIGKILL", where=f"sandbox {folder.name}")
        time.sleep(0.005)
    disk = folder / "disk"
    if disk.exists():
        check_mapped(["rm", "-rf", "upper", "work", "merged", "dev"], cwd=disk)
    shutil.rmtree(folder)


def _command(lower: Path, disk: Path, limits: Limits) -> list[str]:
    """What starts the sandbox in a new user namespace whose current folder is `disk`."""
    relative = os.path.relpath(lower, disk)  # a path may hold what means something to mount
    blocks = str((limits.disk_mib << 20) // 512)
    capabilities = ",".join(f"CAP_{name}" for name in CAPABILITIES.split(","))
    network = [] if limits.network else ["--net", "--network=none"]
    return [
        *("unshare", "--mount", "sh", "-c", _PREPARE, "sh", relative, blocks),
        *(str(find_apptainer()), "--silent", "exec"),
        *("--containall", "--cleanenv", "--no-home", "--no-init", "--no-eval", "--no-umask"),
        *("--no-privs", f"--add-caps={capabilities}", "--hostname=sandbox", *network),
        "--no-mount=hostfs,bind-paths,sys,dev,devpts,tmp,/etc/hosts,/etc/localtime",
        *("--bind=dev:/dev", "--pwd=/", "--writable", "merged"),
        *("sh", "-c", _ENTER),
    ]
