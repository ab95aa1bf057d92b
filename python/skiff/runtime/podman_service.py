"""The podman REST service as a child process of this server.

The child dies with this process (also on SIGKILL); the containers do not: they are swept by their
label. The socket lies in a folder that only this user can enter.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import shutil
import signal
import time
from pathlib import Path

from skiff.errors import InfraError
from skiff.podman import podman_environment, podman_run_dir
from skiff.runtime.podman_api import LOOK_SECONDS, READY_SECONDS, PodmanApi

STOP_SECONDS = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)


class PodmanService(PodmanApi):
    """A `PodmanApi` that starts its service, again when it has died; containers outlive it."""

    def __init__(self) -> None:
        self._folder = podman_run_dir() / f"serve-{os.getpid()}"
        self._log = self._folder / "podman.log"
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        super().__init__(self._folder / "podman.sock")

    @property
    def where(self) -> str:
        return "podman system service"

    async def open(self) -> None:
        """Start the service and wait until it answers. Raises InfraError with podman's words."""
        _remove_dead_folders(self._folder.parent)
        self._folder.mkdir(mode=0o700, exist_ok=True)
        await self._ensure()

    async def close(self) -> None:
        """End the service."""
        await super().close()
        process = self._process
        if process is not None and process.returncode is None:
            process.send_signal(signal.SIGTERM)
            try:
                await asyncio.wait_for(process.wait(), STOP_SECONDS)
            except TimeoutError:
                process.kill()
                await process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)

    async def _ensure(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            self._path.unlink(missing_ok=True)
            environment = podman_environment()
            with self._log.open("wb") as log:
                self._process = await asyncio.create_subprocess_exec(
                    *service_command(self._path),
                    env=environment,
                    cwd=self._folder,  # conmon leaves a file `oom` there after a kill
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,  # Ctrl-C is for us; we end it after the containers
                    preexec_fn=die_with_parent,
                )
            deadline = time.monotonic() + READY_SECONDS
            while not await self._answers():
                if self._process.returncode is not None or time.monotonic() > deadline:
                    raise InfraError(f"does not serve{self._words()}", where=self.where)
                await asyncio.sleep(LOOK_SECONDS)

    def _words(self) -> str:
        return f": {self._log.read_text(errors='replace')[-500:].strip() or 'no message'}"


def service_command(path: Path) -> list[str]:
    """What serves the API at the socket `path` until SIGTERM."""
    return ["podman", "system", "service", "--time=0", f"unix://{path}"]


def die_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends."""
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def _remove_dead_folders(parent: Path) -> None:
    """Remove the folders of servers that were killed."""
    for folder in parent.glob("serve-*"):
        if not Path("/proc", folder.name.removeprefix("serve-")).exists():
            shutil.rmtree(folder, ignore_errors=True)
