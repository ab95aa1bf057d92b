"""podman's service on the host, for a runtime server inside an image: `python -m
skiff.runtime.podman_host --socket FOLDER/podman.sock`.

Makes Skiff's store ready (repair, probe), serves its API at that socket until SIGTERM, SIGINT or
the end of its parent, and leaves neither the socket nor a folder that it has made. Bind the folder
into the image and set SKIFF_PODMAN_SOCKET there. Whoever can open the socket can do with this
user's files as he likes, so the folder is made for its owner only.

End it after the server: the server's sandboxes are removed by way of it. A server that was killed
leaves them to the next one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

from skiff.errors import ConfigError, InfraError, SkiffError
from skiff.podman import SOCKET_VARIABLE, check_podman, end_pause_process, podman_environment
from skiff.runtime.podman_service import STOP_SECONDS, die_with_parent, service_command

SOCKET_BYTES = 107  # of a path, the kernel's limit
ENDS = (signal.SIGTERM, signal.SIGINT)


def main() -> None:
    """The program. Exits with 0 after a signal, with a message and another status on failure."""
    parser = argparse.ArgumentParser(description="Serve Skiff's podman store at a socket.")
    parser.add_argument("--socket", type=Path, required=True, help="made in a folder of your own")
    path: Path = parser.parse_args().socket.absolute()
    parent = os.getppid()
    die_with_parent()
    if os.getppid() != parent:
        return  # it ended before we could be told
    try:
        serve(path)
    except SkiffError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def serve(path: Path) -> None:
    """Serve at the socket `path` until one of ENDS arrives.

    Raises ConfigError for a socket that cannot be ours, InfraError when podman ends by itself (its
    words are in our own stderr) or cannot work here.
    """
    os.environ.pop(SOCKET_VARIABLE, None)  # here podman itself runs
    made = _prepare(path)
    environment = podman_environment()
    signal.pthread_sigmask(signal.SIG_BLOCK, {*ENDS, signal.SIGCHLD})
    service = subprocess.Popen(
        service_command(path),
        env=environment,
        cwd=path.parent,  # conmon leaves a file `oom` there after a kill
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C is for us
        preexec_fn=_begin,
    )
    try:
        while signal.sigwait({*ENDS, signal.SIGCHLD}) not in ENDS:
            if (status := service.poll()) is not None:
                raise InfraError(f"has ended by itself, exit status {status}", where="podman")
    finally:
        service.terminate()
        try:
            service.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()
        path.unlink(missing_ok=True)
        if made:
            shutil.rmtree(path.parent, ignore_errors=True)
        if not check_podman(["ps", "--quiet"]):
            end_pause_process()


def _begin() -> None:
    """In the new process: signals arrive again, and our end is its end."""
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    die_with_parent()


def _prepare(path: Path) -> bool:
    """Make the folder (True), or remove what a killed service has left in it."""
    if len(os.fsencode(path)) > SOCKET_BYTES:
        raise ConfigError(
            f"a socket's path holds {SOCKET_BYTES} bytes at most",
            where=str(path),
            remedy="take a folder with a shorter name, such as one in /tmp",
        )
    if not path.parent.exists():
        path.parent.mkdir(mode=0o700, parents=True)
        return True
    found = path.parent.stat()
    if found.st_uid != os.getuid() or stat.S_IMODE(found.st_mode) & 0o077:
        raise ConfigError(
            "is open to others, or another user's",
            where=str(path.parent),
            remedy="name a socket in a folder that is made for it",
        )
    with socket.socket(socket.AF_UNIX) as probe:
        if probe.connect_ex(str(path)) == 0:
            raise ConfigError("another service answers there", where=str(path))
    path.unlink(missing_ok=True)
    return False


if __name__ == "__main__":
    main()
