"""How the attempts of a drill's run are made: by `skiff run` here, or by a het job on a Slurm."""

from __future__ import annotations

import contextlib
import math
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Protocol

import psutil
from skiff.config import Config
from skiff.errors import InfraError
from skiff.launch import local, run_folder
from skiff.launch.slurm import Job, scancel
from skiff.launch.status import jobs_of
from skiff.launch.submit import submit
from skiff.podman import podman_run_dir
from skiff.train.save_request import request_file
from tiny_run import containers_of, processes_of, tree_of, until

POLL_SECONDS = 0.5
SIGNAL_SECONDS = 60  # before the time limit
END_SECONDS = 10.0  # Slurm says that a job has ended before its last process has
KINDS = ("serve", "host")  # of podman's services, whose folders have the server's number


class Attempts(Protocol):
    """Those of one run."""

    def next(self, watch: Callable[[], None]) -> str:
        """One attempt to its end, and in a word how it stands then; `watch` is called often.
        What of it is left alive ends the drill."""

    def ask_to_save(self) -> None:
        """Have the attempt that runs save and end."""


class Here:
    """Both halves are children of this process."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._config = config
        self._run_dir = run_dir
        self._number = 0

    def next(self, watch: Callable[[], None]) -> str:
        self._number = run_folder.new_attempt(self._run_dir)
        run_folder.meeting(self._run_dir, self._number)
        before = _below()
        with contextlib.suppress(InfraError):  # that it has not done all steps
            local.run_attempt(self._config, self._run_dir, self._number, watch=watch)
        if left := _below() - before:
            sys.exit(f"error: attempt {self._number} has left processes behind: {left}")
        return "ended"

    def ask_to_save(self) -> None:
        request_file(self._run_dir, self._number).touch()


class OnSlurm:
    """One het job, which Skiff requeues."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._run_dir = run_dir
        [self._id] = submit(config, run_dir).values()
        self._number = 0
        self._seen: set[psutil.Process] = set()
        self._limited = False

    def next(self, watch: Callable[[], None]) -> str:
        self._number += 1
        self._limited = False
        if self._number > 1:  # at once: Slurm would wait two minutes
            self._update("StartTime=now", "TimeLimit=60")
        until(lambda: self._states() == {"RUNNING"})
        while self._states() == {"RUNNING"}:
            self._seen |= tree_of(self._run_dir)
            watch()
            time.sleep(POLL_SECONDS)
        until(lambda: all(job.ended or job.reason == "BeginTime" for job in self._jobs()))
        deadline = time.monotonic() + END_SECONDS
        while left := self.left():
            if time.monotonic() > deadline:
                sys.exit(f"error: attempt {self._number} has left behind: {left}")
            time.sleep(POLL_SECONDS)
        return "requeued" if self._states() == {"PENDING"} else " ".join(self._states()).lower()

    def ask_to_save(self) -> None:
        """By a time limit that is near."""
        if not self._limited:
            begun = datetime.fromisoformat(self._jobs()[0].begins).timestamp()
            minutes = math.ceil((time.time() - begun + SIGNAL_SECONDS) / 60)
            self._update(f"TimeLimit={minutes}")
            self._limited = True

    def cancel(self) -> None:
        """As somebody does who knows nothing of Skiff."""
        scancel([self._id])

    def left(self) -> list[str]:
        """What of the run is left on the nodes: processes, containers, sockets, leases."""
        sockets = [podman_run_dir() / f"{kind}-{each.pid}" for each in self._seen for kind in KINDS]
        files = [path for path in sockets if path.exists()]
        for name in ("lease-*", "runtime-*.json"):
            files += self._run_dir.glob(f"rendezvous/*/{name}")
        names = []
        for process in {*self._seen, *processes_of(self._run_dir)}:
            with contextlib.suppress(psutil.NoSuchProcess):
                if process.is_running():  # and no other one with its number
                    names.append(process.name())
        return [*names, *containers_of(self._run_dir), *map(str, files)]

    def _update(self, *words: str) -> None:
        for job in self._jobs():
            subprocess.run(["scontrol", "update", f"JobId={job.id}", *words], check=True)

    def _jobs(self) -> list[Job]:
        return [job for _, job in jobs_of(self._run_dir)]

    def _states(self) -> set[str]:
        return {job.state for job in self._jobs()}


def _below() -> set[int]:
    """All living processes below this one."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found
