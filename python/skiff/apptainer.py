"""Apptainer without setuid, and the one seam where its program is started.

Every call runs in a fresh user namespace that is made here: root's and a user's subordinate ids are
mapped where that is possible, else one id. Inside, Apptainer is root and needs no right of its own,
so it works as root, as an ordinary user and inside another image alike; and the sandboxes of a
server that is root are owned by ids that mean nothing on the host.

The user's own settings are never read: neither ~/.apptainer nor APPTAINER_* variables.

What only reads or writes a SIF file (`check_sif`) needs no namespace and gets none.

Tried with Apptainer 1.4. Not covered: SingularityCE, pulling from registries.
"""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import re
import shutil
import signal
import stat
import subprocess
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from skiff.errors import InfraError
from skiff.sif import root_offset

OLDEST = (1, 1)  # older ones lack `--no-mount bind-paths` and installation without rights
ROOT_IDS = (100_000, 65_536)  # host start and length, when root has no line in /etc/subuid
INSTALL = "run tools/install-apptainer, or set SKIFF_APPTAINER to an Apptainer 1.1 or newer"
_INSTALLED = "usr/bin/apptainer"  # below the folder that tools/install-apptainer fills
_OTHER_OWNERS = 2  # unsquashfs: all is there, but for owners or attributes
_WAIT = 'kill -s STOP "$$"; exec "$@"'  # until the ids are mapped


@dataclass(frozen=True)
class IdMap:
    """How ids of the user namespace appear on the host.

    root   the host's id of the namespace's root
    first  the host's id of the namespace's id 1, which `count` - 1 others follow
    """

    root: int
    first: int
    count: int

    @property
    def single(self) -> bool:
        """True when the namespace has no id but root: no chown, no change of user."""
        return self.count == 1


def apptainer_root() -> Path:
    """The folder of unpacked images and sandboxes: SKIFF_APPTAINER_ROOT, else below /var.

    It must be on a local disk: overlay mounts do not work on NFS or Lustre. It is made when absent
    and can be passed, but not listed, by others: the ids of a sandbox are others. Raises InfraError
    when somebody else owns it.
    """
    default = f"/var/tmp/skiff-apptainer-{os.getuid()}"
    path = Path(os.environ.get("SKIFF_APPTAINER_ROOT") or default).absolute()
    path.mkdir(mode=0o711, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise InfraError(
            "is not a folder that you own and nobody else can change",
            where=str(path),
            remedy="remove it, or set SKIFF_APPTAINER_ROOT to another folder",
        )
    return path


@functools.cache
def find_apptainer() -> Path:
    """The program: SKIFF_APPTAINER, else on PATH, else where tools/install-apptainer puts it.

    Raises InfraError when there is none or it is older than `OLDEST`.
    """
    data = Path(os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share")
    candidates = [
        os.environ.get("SKIFF_APPTAINER"),
        shutil.which("apptainer"),
        data / "skiff" / "apptainer" / _INSTALLED,
        Path("/usr/local/lib/skiff-apptainer") / _INSTALLED,
    ]
    for candidate in candidates:
        if candidate and os.access(candidate, os.X_OK):
            program = Path(candidate).absolute()
            break
    else:
        raise InfraError("apptainer is not installed", remedy=INSTALL)
    done = subprocess.run(
        [program, "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    numbers = re.search(r"apptainer.* (\d+)\.(\d+)", done.stdout)
    if numbers is None or (int(numbers[1]), int(numbers[2])) < OLDEST:
        words = done.stdout.strip() or done.stderr.strip() or f"exit {done.returncode}"
        raise InfraError(
            f"is too old or does not work: {words}", where=str(program), remedy=INSTALL
        )
    return program


def apptainer_environment(scratch: Path | None = None) -> dict[str, str]:
    """The whole environment of a call. `scratch`: folder for temporary files of a build."""
    program = find_apptainer()
    places = [str(program.parent), os.environ.get("PATH", ""), "/usr/sbin", "/sbin"]
    environment = {"PATH": ":".join(places), "HOME": "/", "LC_ALL": "C"}
    # A folder that cannot exist: no configuration is read or written.
    environment["APPTAINER_CONFIGDIR"] = "/dev/null/skiff"
    if scratch is not None:
        environment["APPTAINER_TMPDIR"] = environment["APPTAINER_CACHEDIR"] = str(scratch)
    return environment


@functools.cache
def id_map() -> IdMap:
    """The ids that this user can map; tried once per process. Raises InfraError when there are no
    user namespaces at all."""
    for candidate in _candidates():
        try:
            if _run_mapped(candidate, ["true"], environment=None).returncode == 0:
                return candidate
        except InfraError:
            if candidate.single:
                raise
    raise InfraError(
        "this user cannot make a user namespace",
        where="unshare --user",
        remedy="allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone",
    )


def start_mapped(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    stdout: IO[bytes] | int = subprocess.DEVNULL,
    stderr: IO[bytes] | int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start `command` as root of a new user namespace, in a session of its own.

    It outlives this process. Raises InfraError when the namespace cannot be made.
    """
    return _start(
        id_map(),
        command,
        environment=environment,
        cwd=cwd,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
    )


def run_mapped(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    timeout: float = 600,
) -> subprocess.CompletedProcess[bytes]:
    """Run `command` like `start_mapped`, to its end, whatever its exit status; `timeout` in
    seconds. Raises InfraError when it outlives that."""
    return _run_mapped(
        id_map(), command, environment=environment, cwd=cwd, stdin=stdin, timeout=timeout
    )


def check_mapped(
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    timeout: float = 600,
) -> bytes:
    """Like `run_mapped`, and return its stdout; InfraError with its words when it fails."""
    done = run_mapped(command, environment=environment, cwd=cwd, stdin=stdin, timeout=timeout)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-500:] or "no message"
        where = " ".join([Path(command[0]).name, *command[1:2]])
        raise InfraError(f"exit {done.returncode}: {words}", where=where)
    return done.stdout


def run_sif(arguments: Sequence[str], *, timeout: float = 600) -> subprocess.CompletedProcess[str]:
    """Run `apptainer ARGUMENTS`, which work on a SIF file as a file, whatever its exit status;
    `timeout` in seconds. Raises InfraError when it outlives that."""
    try:
        return subprocess.run(
            [find_apptainer(), *arguments],
            env=apptainer_environment(),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        where = " ".join(["apptainer", *arguments[:2]])
        raise InfraError(f"no end after {timeout:g} s", where=where) from error


def check_sif(arguments: Sequence[str], *, timeout: float = 600) -> None:
    """Like `run_sif`; InfraError with its words when it fails."""
    done = run_sif(arguments, timeout=timeout)
    if done.returncode != 0:
        words = done.stderr.strip()[-500:] or "no message"
        where = " ".join(["apptainer", *arguments[:2]])
        raise InfraError(f"exit {done.returncode}: {words}", where=where)


def inspect_tree(tree: Path) -> bytes:
    """What `apptainer inspect` tells of an unpacked image, as the JSON that a SIF carries so that
    nobody needs to start it to know its labels, scripts and help. The tree is the caller's."""
    ids = IdMap(root=os.getuid(), first=os.getuid(), count=1)
    command = [str(find_apptainer()), "inspect", "--all", "--json", str(tree)]
    done = _run_mapped(ids, command, environment=apptainer_environment(), timeout=60)
    if done.returncode != 0:
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise InfraError(f"exit {done.returncode}: {words}", where="apptainer inspect")
    return done.stdout


def squashfs_tool(name: str) -> str:
    """The path of mksquashfs or unsquashfs: Apptainer's own, else the host's. Raises InfraError."""
    program = shutil.which(name, path=apptainer_environment()["PATH"])
    if program is None:
        raise InfraError(
            f"{name} is not installed",
            remedy="install squashfs-tools, or run tools/install-apptainer",
        )
    return program


def build_sif(source: str, target: Path) -> None:
    """Make the SIF `target` of a root folder or of another source that `apptainer build` knows and
    that is on this host, such as docker-archive:/path. It is whole or absent."""
    _build(source, target, [])


def unpack_sif(sif: Path, target: Path) -> None:
    """Unpack a SIF into the new folder `target`, whose parent the namespace's root can write.

    In a namespace of one id every file becomes root's.
    """
    if not id_map().single:
        _build(str(sif), target, ["--sandbox"])
        return
    options = ["-quiet", "-no-progress", "-offset", str(root_offset(sif)), "-dest", str(target)]
    done = run_mapped([squashfs_tool("unsquashfs"), *options, str(sif)], timeout=3600)
    if done.returncode not in (0, _OTHER_OWNERS):
        words = done.stderr.decode(errors="replace").strip()[-500:]
        raise InfraError(f"exit {done.returncode}: {words}", where="unsquashfs")


def build_tree(
    definition: Path,
    target: Path,
    *,
    binds: Sequence[str],
    arguments: Mapping[str, str],
    scratch: Path,
    output: IO[bytes],
    watch: Callable[[], None],
) -> None:
    """Carry out a definition into the new folder `target`, all of it owned by this user.

    Runs in a namespace of one id, so that it reads this user's files and needs no subordinate ids.
    `binds` are host:inside[:ro] and `arguments` those of the definition; Apptainer's and the
    definition's words go to `output`; `watch` is called twice a second. Raises InfraError.
    """
    options = [f"--bind={bind}" for bind in binds]
    options += [f"--build-arg={name}={value}" for name, value in arguments.items()]
    command = [str(find_apptainer()), "build", "--userns", "--sandbox", "--warn-unused-build-args"]
    command.append("--force")  # else the base's labels and help stay
    user = os.getuid()
    process = _start(
        IdMap(root=user, first=user, count=1),
        [*command, *options, str(target), str(definition)],
        environment=apptainer_environment(scratch),
        cwd=scratch,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
    )
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=0.5)
                break
            watch()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait()
    if process.returncode != 0:
        raise InfraError(
            f"exit {process.returncode}",
            where=f"apptainer build {definition.name}",
            remedy=f"its words: {output.name}",
        )


def own(folder: Path) -> None:
    """Give a folder to the namespace's root."""
    if os.getuid() != id_map().root:
        os.chown(folder, id_map().root, id_map().root)


def check_overlay(folder: Path) -> None:
    """Raises InfraError when the kernel cannot put an overlay upon `folder` in a namespace of this
    user, as a sandbox needs it, or when the namespace cannot reach the folder."""
    with tempfile.TemporaryDirectory(prefix="probe-", dir=folder) as name:
        probe = Path(name)
        own(probe)
        script = (
            'cd -- "$1" && mkdir lower lower/d upper work merged && mount -t overlay '
            "-o userxattr,lowerdir=lower,upperdir=upper,workdir=work overlay merged && "
            # What fails where extended attributes do: a folder in the place of a removed one.
            "rmdir merged/d && mkdir merged/d"
        )
        command = ["unshare", "--mount", "sh", "-c", script, "sh", str(probe)]
        done = run_mapped(command, timeout=60)
        check_mapped(["find", ".", "-mindepth", "1", "-delete"], cwd=probe, timeout=60)
    if done.returncode != 0:
        raise InfraError(
            f"no overlay can be mounted there: {done.stderr.decode(errors='replace').strip()}",
            where=str(folder),
            remedy="set SKIFF_APPTAINER_ROOT to a folder on a local disk (ext4 or xfs) that others "
            "can pass; the kernel must be 5.11 or newer",
        )


def _build(source: str, target: Path, options: list[str]) -> None:
    with tempfile.TemporaryDirectory(prefix=".build-", dir=target.parent) as name:
        scratch = Path(name)
        own(scratch)
        made = scratch / "image"
        command = [str(find_apptainer()), "--silent", "build", *options, str(made), source]
        try:
            check_mapped(command, environment=apptainer_environment(scratch), timeout=3600)
            made.chmod(made.stat().st_mode | stat.S_IWUSR)  # else the folder / may not be moved
            made.rename(target)
        finally:
            check_mapped(["find", ".", "-mindepth", "1", "-delete"], cwd=scratch)


def _run_mapped(
    ids: IdMap,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None,
    cwd: Path | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
    timeout: float = 60,
) -> subprocess.CompletedProcess[bytes]:
    process = _start(
        ids,
        command,
        environment=environment,
        cwd=cwd,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        where = Path(command[0]).name
        raise InfraError(f"no end after {timeout:g} s", where=where) from error
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _start(
    ids: IdMap,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None,
    cwd: Path | None,
    stdin: IO[bytes] | int,
    stdout: IO[bytes] | int,
    stderr: IO[bytes] | int,
) -> subprocess.Popen[bytes]:
    # Root cannot stay root in a map that leaves out its id: exec would take the capabilities away.
    other = ids.root if ids.root != os.getuid() else None
    try:
        process = subprocess.Popen(
            [*_unshare(ids), *command],
            env=dict(os.environ if environment is None else environment),
            cwd=cwd,
            stdin=stdin,
            stdout=stdout,
            stderr=stderr,
            start_new_session=True,
            user=other,
            group=other,
            extra_groups=None if other is None else [],
        )
    except OSError as error:  # no unshare, or no such id in the namespace that we are in
        raise InfraError(str(error), where="unshare --user") from error
    if ids.single:
        return process
    state = os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
    if state is None or state.si_code != os.CLD_STOPPED:
        process.communicate()
        raise InfraError(
            "no user namespace could be made",
            where="unshare --user",
            remedy="allow it: sysctl user.max_user_namespaces, kernel.unprivileged_userns_clone",
        )
    try:
        _map(process.pid, ids)
    except (OSError, InfraError) as error:
        process.kill()
        process.communicate()
        words = error.what if isinstance(error, InfraError) else str(error)
        raise InfraError(f"ids could not be mapped: {words}", where="user namespace") from error
    process.send_signal(signal.SIGCONT)
    return process


def _unshare(ids: IdMap) -> list[str]:
    """What makes the namespace. One id it can map itself, and where no_new_privs is set (inside
    another image) it must: capabilities that a later mapping would give are then withheld."""
    if ids.single:
        return ["unshare", "--map-root-user"]
    return ["unshare", "--user", "sh", "-c", _WAIT, "sh"]


def _map(pid: int, ids: IdMap) -> None:
    """Write the id maps of a new user namespace."""
    if ids.root == ids.first:
        for name in ("uid_map", "gid_map"):
            Path("/proc", str(pid), name).write_text(f"0 {ids.root} {ids.count}\n")
        return
    for program, own_id in (("newuidmap", os.getuid()), ("newgidmap", os.getgid())):
        rest = ["1", str(ids.first), str(ids.count - 1)]
        done = subprocess.run(
            [program, str(pid), "0", str(own_id), "1", *rest],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        if done.returncode != 0:
            raise InfraError(done.stderr.strip(), where=program)


def _candidates() -> list[IdMap]:
    """What to try, best first."""
    user = os.getuid()
    found = [IdMap(root=user, first=user, count=1)]
    granted = _granted()
    if user == 0:
        start, count = granted or ROOT_IDS
        found.insert(0, IdMap(root=start, first=start, count=count))
    elif granted is not None and shutil.which("newuidmap") is not None:
        found.insert(0, IdMap(root=user, first=granted[0], count=granted[1] + 1))
    return found


def _granted() -> tuple[int, int] | None:
    """This user's (start, count) of subordinate ids, when it serves for groups too."""
    ranges = {_line(Path("/etc/subuid")), _line(Path("/etc/subgid"))}
    return ranges.pop() if len(ranges) == 1 else None


def _line(path: Path) -> tuple[int, int] | None:
    if not path.exists():
        return None
    names = [str(os.getuid())]
    with contextlib.suppress(KeyError):  # a user without a name
        names.append(pwd.getpwuid(os.getuid()).pw_name)
    for line in path.read_text().splitlines():
        name, _, numbers = line.partition(":")
        if name in names:
            start, _, count = numbers.partition(":")
            return int(start), int(count)
    return None
