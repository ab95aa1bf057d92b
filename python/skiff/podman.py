"""Skiff's own podman: one private store and configuration per user, and the one seam where the
podman program is started.

The user's own containers, images and configuration files are never read or changed: storage,
run folder and both configuration files lie below `podman_root()` and `podman_run_dir()`. Works
rootless and as root; as root every container gets a user namespace of its own all the same.
A damaged store is repaired first, see `podman_repair`.

Inside an image that grants no further ids podman itself cannot run. There SKIFF_PODMAN_SOCKET names
the socket of a service that the host has started on the same store (skiff.runtime.podman_host), and
podman is only its client: store, probe and repair are the host's.

Not covered: the REST API (skiff.runtime).
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import json
import os
import resource
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.mounts import check_local
from skiff.podman_repair import repair_store

SOCKET_VARIABLE = "SKIFF_PODMAN_SOCKET"
OCI_RUNTIMES = ("crun", "runc")
NOT_FOUND = 127  # podman's exit status when the container's command does not exist
CONMON_FOLDERS = (
    "/usr/bin",
    "/usr/libexec/podman",
    "/usr/local/libexec/podman",
    "/usr/local/lib/podman",
    "/usr/lib/podman",
    "/usr/local/bin",
)
NOFILE = (1024, 65536)
NPROC = 32768  # podman lowers its own limit to pid_max, which is at least this
_OPEN_MODE = 0o711  # mapped ids of a root-started container pass through, nobody can list
_REPAIR_SECONDS = 120.0
_CHECK_SECONDS = 0.5
_INFO_SECONDS = 60.0
_TERM_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
ROOT_ID_MAP = (100_000, 65_536)  # host start and length, when root has no line in /etc/subuid
CPU_PERIOD = 100_000  # microseconds


@dataclass(frozen=True)
class Isolation:
    """What every container needs on this host to be startable at all.

    rlimits  name -> (soft, hard), at or below our own hard limits: more takes CAP_SYS_RESOURCE. A
             bound service has the same ones: it and we are started by the same job
    id_map   (host start, length) of the container's ids; None: podman's rootless mapping
    """

    rlimits: Mapping[str, tuple[int, int]]
    id_map: tuple[int, int] | None

    def arguments(self) -> list[str]:
        """The same as arguments of `podman run`."""
        limits = [f"--ulimit={name}={soft}:{hard}" for name, (soft, hard) in self.rlimits.items()]
        if self.id_map is None:
            return limits
        start, length = self.id_map
        return [*limits, f"--uidmap=0:{start}:{length}", f"--gidmap=0:{start}:{length}"]


def podman_root() -> Path:
    """The folder of the store: SKIFF_PODMAN_ROOT, else below the user's data folder.

    It must be on a local disk; overlay mounts do not work on NFS or Lustre. Root's is below
    /var/lib, since the mapped ids of a container cannot pass through a closed home folder.
    """
    if chosen := os.environ.get("SKIFF_PODMAN_ROOT"):
        return Path(chosen).absolute()
    if os.getuid() == 0:
        return Path("/var/lib/skiff/podman")
    data = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(data) / "skiff" / "podman"


def podman_run_dir() -> Path:
    """The private folder of sockets, locks and mounts; made when absent.

    Fixed for a store (podman records it in the store's database, so $TMPDIR, which differs from
    job to job, will not do) and short (a socket path holds 107 bytes).
    """
    digest = hashlib.sha256(str(podman_root()).encode()).hexdigest()[:8]
    path = Path("/tmp") / f"skiff-{os.getuid()}-{digest}"
    path.mkdir(mode=_OPEN_MODE, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o066:
        raise InfraError(
            "is not a folder of yours that nobody else can list or change",
            where=str(path),
            remedy="remove it, or set SKIFF_PODMAN_ROOT to another folder",
        )
    return path


def bound_socket() -> Path | None:
    """The socket of the host's podman service; None: podman runs here."""
    chosen = os.environ.get(SOCKET_VARIABLE)
    return Path(chosen).absolute() if chosen else None


def isolation() -> Isolation:
    """Resource limits and id mapping that podman may set. Raises InfraError when a bound service
    does not say who it is."""
    if (socket := bound_socket()) is None:
        return _own_isolation()
    # Our own id says nothing: in an image, root is often an ordinary user of the host. Nor is the
    # image's /etc/subuid the host's.
    return _isolation(None if _service(socket).rootless else ROOT_ID_MAP)


def podman_environment() -> dict[str, str]:
    """The environment in which `podman` uses Skiff's store and configuration.

    Writes the two configuration files when they differ. Raises InfraError when podman is missing
    or no OCI runtime can start a container here; the probe runs once per process and store.
    """
    return dict(_environment(str(podman_root())))


def run_podman(
    arguments: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout: float = 600,
    begin: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[bytes]:
    """Run `podman <arguments>` to its end, whatever its exit status. `timeout` in seconds;
    `begin` is called in the new process, which of a bound service is only the client.

    Raises InfraError when it is not installed or outlives the timeout.
    """
    program, environment = _program()
    return _run(arguments, environment, stdin=stdin, timeout=timeout, begin=begin, program=program)


def check_podman(
    arguments: Sequence[str],
    *,
    stdin: bytes | None = None,
    timeout: float = 600,
    begin: Callable[[], None] | None = None,
) -> bytes:
    """Run `podman <arguments>` and return its stdout; InfraError with its words when it fails."""
    done = run_podman(arguments, stdin=stdin, timeout=timeout, begin=begin)
    if done.returncode != 0:
        raise InfraError(
            f"exit {done.returncode}: {_words(done.stderr)}", where=f"podman {arguments[0]}"
        )
    return done.stdout


def watch_podman(
    arguments: Sequence[str], check: Callable[[], None], *, scratch: Path
) -> subprocess.CompletedProcess[bytes]:
    """Run `podman <arguments>` to its end, whatever its exit status, with temporary files in the
    folder `scratch`. `check` is called about twice a second and ends it by raising.

    podman is ended when the calling thread ends, also with a killed process.
    """
    program, environment = _program()
    process = subprocess.Popen(
        [*program, *arguments],
        env={**environment, "TMPDIR": str(scratch)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        preexec_fn=_die_with_parent,
    )
    with process:
        try:
            while True:
                try:
                    out, err = process.communicate(timeout=_CHECK_SECONDS)
                    return subprocess.CompletedProcess(arguments, process.returncode, out, err)
                except subprocess.TimeoutExpired:
                    check()
        finally:
            if process.poll() is None:
                _end(process)


def image_exists(name: str) -> bool:
    """True when the store holds an image of this name or id."""
    done = run_podman(["image", "exists", name], timeout=60)
    if done.returncode not in (0, 1):
        raise InfraError(_words(done.stderr), where=f"podman image exists {name}")
    return done.returncode == 0


def import_rootfs(tar: Path, name: str, *, changes: Sequence[str] = ()) -> None:
    """Make the one-layer image `name` of a root file system in a tar file.

    `changes` are Dockerfile instructions such as 'ENV A=b' or 'WORKDIR /testbed'.
    """
    options = [word for change in changes for word in ("--change", change)]
    check_podman(["import", "--quiet", *options, str(tar), name], timeout=1800)


def build(
    context: Path,
    name: str,
    *,
    build_args: Mapping[str, str] | None = None,
    network: bool = False,
    cpus: int | None = None,
) -> None:
    """Build `name` from the Dockerfile in the folder `context`; RUN has no network unless asked.

    Base images must be in the store already: nothing is pulled. With `cpus` the build keeps to so
    many of this process's CPUs, at the lowest priority; a bound service, whose process is not
    ours, keeps it to so much CPU time where the service has CPU cgroups.
    """
    options = [f"--build-arg={key}={value}" for key, value in (build_args or {}).items()]
    if not network:
        options.append("--network=none")
    options.append("--layers=false")  # one layer, and no nameless image of every step left behind
    begin = None
    socket = bound_socket()
    if cpus is not None and socket is None:
        begin = functools.partial(_stand_back, cpus)
    if cpus is not None and socket is not None and "cpu" in _service(socket).controllers:
        options += [f"--cpu-period={CPU_PERIOD}", f"--cpu-quota={cpus * CPU_PERIOD}"]
    check_podman(
        ["build", "--quiet", "--pull=never", *options, f"--tag={name}", str(context)],
        timeout=3600,
        begin=begin,
    )


def end_pause_process() -> None:
    """End the process by which rootless podman keeps its user namespace between its commands.

    The next command starts a new one. Call it only when no container of the store is running.
    """
    try:
        pid = int((podman_run_dir() / "libpod" / "pause.pid").read_text())
        program = Path("/proc", str(pid), "comm").read_text().strip()
        if program in ("catatonit", "podman"):  # not a later process of the same pid
            os.kill(pid, signal.SIGTERM)
    except (FileNotFoundError, ProcessLookupError):
        return  # there is none


def _run(
    arguments: Sequence[str],
    environment: Mapping[str, str],
    *,
    stdin: bytes | None,
    timeout: float,
    begin: Callable[[], None] | None = None,
    program: Sequence[str] = ("podman",),
) -> subprocess.CompletedProcess[bytes]:
    try:
        return subprocess.run(
            [*program, *arguments],
            env=dict(environment),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            timeout=timeout,
            check=False,
            preexec_fn=begin,
        )
    except subprocess.TimeoutExpired as error:
        where = f"podman {' '.join(arguments[:2])}"
        raise InfraError(f"no end after {timeout:g} s", where=where) from error


def _program() -> tuple[Sequence[str], Mapping[str, str]]:
    """What calls podman, and its environment."""
    if (socket := bound_socket()) is None:
        return ("podman",), podman_environment()
    return _client(socket)


def _client(socket: Path) -> tuple[Sequence[str], Mapping[str, str]]:
    for name in ("podman", "podman-remote"):
        if shutil.which(name) is not None:
            # Without the user's own configuration, which may name another service.
            environment = {**os.environ, "CONTAINERS_CONF": os.devnull}
            return (name, "--remote", "--url", f"unix://{socket}"), environment
    raise InfraError(
        "podman is not installed, not even as a client", remedy="install podman or podman-remote"
    )


@dataclass(frozen=True)
class _Service:
    """A bound service: whether it is an ordinary user's, and which cgroups it may set."""

    rootless: bool
    controllers: frozenset[str]


@functools.cache
def _service(socket: Path) -> _Service:
    program, environment = _client(socket)
    done = _run(
        ["info", "--format=json"], environment, stdin=None, timeout=_INFO_SECONDS, program=program
    )
    if done.returncode != 0:
        raise InfraError(_words(done.stderr), where=f"podman service at {socket}")
    host = json.loads(done.stdout)["host"]
    return _Service(
        rootless=host["security"]["rootless"],
        controllers=frozenset(host.get("cgroupControllers") or ()),
    )


def _own_isolation() -> Isolation:
    """Of a podman that runs here."""
    return _isolation(_root_id_map() if os.getuid() == 0 else None)


def _isolation(id_map: tuple[int, int] | None) -> Isolation:
    nofile = _capped(resource.RLIMIT_NOFILE, NOFILE[1])
    nproc = _capped(resource.RLIMIT_NPROC, NPROC)
    return Isolation(
        rlimits={"nofile": (min(NOFILE[0], nofile), nofile), "nproc": (nproc, nproc)},
        id_map=id_map,
    )


def _stand_back(cpus: int) -> None:
    """Keep to so many CPUs and yield to everything else; without cgroups, which a user may lack."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-cpus:])
    os.nice(19)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.communicate(timeout=_TERM_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()


@functools.cache
def _environment(root: str) -> Mapping[str, str]:
    if shutil.which("podman") is None:
        raise InfraError(
            "podman is not installed", remedy="install podman (4.3 or newer) and runc or crun"
        )
    run_dir = podman_run_dir()
    folder = Path(root)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    _check_passable(folder)
    for path in (folder, run_dir):
        check_local(path, remedy="set SKIFF_PODMAN_ROOT to a folder on a disk of this node")
    (folder / "tmp").mkdir(mode=0o700, exist_ok=True)
    environment = os.environ | {
        "CONTAINERS_CONF": str(folder / "containers.conf"),
        "CONTAINERS_STORAGE_CONF": str(folder / "storage.conf"),
        "XDG_RUNTIME_DIR": str(run_dir),
    }
    storage = (
        "[storage]\n"
        'driver = "overlay"\n'
        f'graphroot = "{folder / "storage"}"\n'
        f'rootless_storage_path = "{folder / "storage"}"\n'
        # As an ordinary user podman ignores runroot and uses XDG_RUNTIME_DIR/containers.
        f'runroot = "{run_dir / "containers"}"\n'
    )
    _write_changed(folder / "storage.conf", storage)
    _write_changed(folder / "conmon", _conmon_script(environment), mode=0o755)
    if not (folder / "containers.conf").exists():  # else it may be in use: no flip while probing
        _write_changed(
            folder / "containers.conf", _containers_conf(folder, run_dir, OCI_RUNTIMES[0])
        )
    _repair(environment, run_dir, folder / "storage")
    oci_runtime = _working_oci_runtime(environment, run_dir)
    _write_changed(folder / "containers.conf", _containers_conf(folder, run_dir, oci_runtime))
    return environment


def _repair(environment: Mapping[str, str], run_dir: Path, storage: Path) -> None:
    path = environment.get("PATH")
    installed = [name for name in OCI_RUNTIMES if shutil.which(name, path=path)]
    if not installed:
        return  # nothing works then, and `_working_oci_runtime` says why

    def podman(arguments: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
        named = ["--runtime", installed[0], *arguments]
        return _run(named, environment, stdin=None, timeout=_REPAIR_SECONDS)

    repair_store(podman, storage, run_dir)


def _check_passable(folder: Path) -> None:
    """As root: every parent of the store must let the containers' mapped ids through."""
    closed = [path for path in (folder, *folder.parents) if not path.stat().st_mode & stat.S_IXOTH]
    if os.getuid() == 0 and closed:
        raise InfraError(
            "is closed to the mapped ids of the containers",
            where=str(closed[-1]),
            remedy=f"chmod o+x {closed[-1]}, or set SKIFF_PODMAN_ROOT to another folder",
        )


def _containers_conf(folder: Path, run_dir: Path, oci_runtime: str) -> str:
    return (
        "[containers]\n"
        'log_driver = "none"\n'
        'base_hosts_file = "none"\n'  # the host's names are not the sandbox's business
        "[engine]\n"
        f'runtime = "{oci_runtime}"\n'
        f'conmon_path = ["{folder / "conmon"}"]\n'
        'cgroup_manager = "cgroupfs"\n'  # the systemd manager needs a user session
        'events_logger = "none"\n'
        f'tmp_dir = "{run_dir / "libpod"}"\n'
        f'image_copy_tmp_dir = "{folder / "tmp"}"\n'
    )


def _conmon_script(environment: Mapping[str, str]) -> str:
    """conmon, podman's parent of a container, told to keep the container's stdin open.

    Else it is closed when a client goes, and the sandboxes would end with their server. It also
    begins in the container's bundle (the word after -b): there podman looks for the file `oom`,
    which conmon makes in its current folder when the kernel kills for the container's memory limit.
    """
    places = os.pathsep.join([*CONMON_FOLDERS, environment.get("PATH", "")])
    found = shutil.which("conmon", path=places)
    if found is None:
        raise InfraError("conmon is not installed", remedy="install conmon, a part of podman")
    return (
        "#!/bin/sh\n"
        'for word; do [ "$before" != -b ] || cd -- "$word" || exit; before=$word; done\n'
        f'exec {shlex.quote(found)} --leave-stdin-open "$@"\n'
    )


def _working_oci_runtime(environment: Mapping[str, str], run_dir: Path) -> str:
    """The first OCI runtime that gets as far as looking for a container's command.

    An empty root file system is enough for that, so the probe needs no image.
    """
    refusals = []
    with tempfile.TemporaryDirectory(prefix="probe-", dir=run_dir) as empty:
        for folder in (Path(empty), Path(empty) / "etc"):  # mount points are made by mapped ids
            folder.mkdir(exist_ok=True)
            folder.chmod(0o777)
        probe = ["run", "--rm", "--network=none", *_own_isolation().arguments()]
        for name in OCI_RUNTIMES:
            if shutil.which(name, path=environment.get("PATH")) is None:
                refusals.append(f"{name}: not installed")
                continue
            done = _run(
                ["--runtime", name, *probe, "--rootfs", empty, "/none"],
                environment,
                stdin=None,
                timeout=60,
            )
            if done.returncode == NOT_FOUND:
                return name
            refusals.append(f"{name}: {_words(done.stderr)}")
    raise InfraError(
        "no OCI runtime can start a container: " + "; ".join(refusals),
        where="podman",
        remedy="install runc or crun; as an ordinary user also uidmap and a line of yours in "
        "/etc/subuid and /etc/subgid",
    )


def _capped(limit: int, most: int) -> int:
    hard = resource.getrlimit(limit)[1]
    return most if hard == resource.RLIM_INFINITY else min(hard, most)


def _root_id_map() -> tuple[int, int]:
    """Root's line in /etc/subuid, when that range serves for groups too; else a common range."""
    ranges = {_subordinate_ids(Path("/etc/subuid")), _subordinate_ids(Path("/etc/subgid"))}
    if len(ranges) == 1 and (found := ranges.pop()) is not None:
        return found
    return ROOT_ID_MAP


def _subordinate_ids(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    for line in path.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name in ("root", "containers"):
            start, _, length = numbers.partition(":")
            return int(start), int(length)
    return None


def _write_changed(path: Path, text: str, *, mode: int = 0o644) -> None:
    if not path.exists() or path.read_text() != text:
        write_atomic(path, text, mode=mode)


def _words(stderr: bytes) -> str:
    return stderr.decode(errors="replace").strip().removeprefix("Error: ") or "no message"
