"""A real Slurm of three nodes on this host, and runs that are submitted to it: for the tests of
runs from the clone, and in tests/sif of those from the images."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff.config import Config
from skiff.launch import run_folder
from skiff.launch.slurm import Job, scancel
from skiff.launch.status import jobs_of, status
from skiff.launch.submit import submit
from skiff.podman import check_podman
from skiff.runtime.leftovers import remove_leftovers
from skiff.runtime.podman_backend import LABEL
from skiff.runtime.server import STATE_FOLDER

TOOL = Path(__file__).parents[2] / "tools" / "slurm-test"
SECONDS = 60.0


def until(condition: Callable[[], Any], seconds: float = SECONDS) -> Any:
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return found


def processes_of(folder: Path) -> list[list[str]]:
    """The commands of living processes that name the folder."""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(folder) in " ".join(command)]


class SlurmTool:
    """tools/slurm-test on a running Slurm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, command: str, *arguments: str) -> None:
        subprocess.run([TOOL, command, self._folder, *arguments], check=True, timeout=2 * SECONDS)

    @contextlib.contextmanager
    def lost(self, node: str) -> Iterator[None]:
        """While the block runs, the node is as after a power cut."""
        self("lose", node)
        try:
            yield
        finally:
            self("return", node)


@contextlib.contextmanager
def running_slurm(folder: Path) -> Iterator[SlurmTool]:
    """While the block runs, Slurm's programs reach one in `folder`, and no other."""
    tool = SlurmTool(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            subprocess.run([TOOL, "start", folder], check=True, timeout=SECONDS)
            yield tool
        finally:
            tool("stop")
        assert not folder.exists()
        assert processes_of(folder) == []


def nodes() -> dict[str, Any]:
    """The section [slurm] of a profile for it."""
    return {
        "runtime": {"partition": "cpu", "cpus": 2},
        "trainer": {"partition": "gpu", "cpus": 2, "gres": "gpu:2"},
    }


def interpreter(file: Path, command: str, shell: str = "") -> str:
    """A program for `sys.executable`, from which jobs that are submitted from then on start their
    halves: on a node it runs the lines `shell` and then `command`. Returns its path."""
    file.write_text(f'#!/bin/bash\n{shell}\nexec {command} "$@"\n')
    file.chmod(0o755)
    return str(file)


# For `interpreter`: the node gpu1 has an empty folder of its own where the run folder is.
UNSHARED = """
if [ "$SLURMD_NODENAME" = gpu1 ] && [ -z "$hidden" ]; then
    run=$(sed 's/.*--run \\([^ ]*\\).*/\\1/' <<<"$*")
    export hidden=1
    exec unshare --user --map-root-user --mount sh -c \\
        'mount -t tmpfs none "$1" && shift && exec "$@"' sh "$run" "$0" "$@"
fi"""


@dataclass(frozen=True)
class Run:
    """A submitted run."""

    folder: Path
    config: Config

    def jobs(self) -> dict[str, Job]:
        """Half -> its job."""
        return dict(jobs_of(self.folder))

    def ended(self, seconds: float = SECONDS) -> dict[str, Job]:
        """The jobs, once all have ended and nothing of them is left on the nodes."""

        def found() -> dict[str, Job] | None:
            jobs = self.jobs()
            return jobs if all(job.ended for job in jobs.values()) else None

        jobs: dict[str, Job] = until(found, seconds)
        until(lambda: not processes_of(self.folder))
        assert self.containers() == []
        return jobs

    def published(self, attempt: int = 1, seconds: float = SECONDS) -> Path:
        """The server's file, once it is there."""
        folder = self.folder / "rendezvous" / f"{attempt:02d}"
        return Path(until(lambda: sorted(folder.glob("runtime-*.json")), seconds)[0])

    def published_now(self) -> list[Path]:
        """All servers' files."""
        return sorted(self.folder.glob("rendezvous/*/runtime-*.json"))

    def leases(self) -> list[Path]:
        """Those of both halves."""
        return sorted(self.folder.glob("rendezvous/*/lease-*"))

    def processes(self) -> set[psutil.Process]:
        """The halves on the nodes, and all that they have started."""
        found: set[psutil.Process] = set()
        for process in psutil.process_iter(["cmdline"]):
            if {"skiff.launch.half", str(self.folder)} <= set(process.info["cmdline"] or []):
                with contextlib.suppress(psutil.NoSuchProcess):
                    found |= {process, *process.children(recursive=True)}
        return found

    def containers(self) -> list[str]:
        """All containers of the run's servers."""
        ids = [path.read_text() for path in self.folder.glob(f"{STATE_FOLDER}/*/server_id")]
        return [
            name
            for one in ids
            for name in check_podman(
                ["ps", "--all", "--quiet", "--filter", f"label={LABEL}={one}"]
            ).split()
        ]

    def remove_containers(self) -> None:
        """What a node does not have any more after a power cut."""
        for state in self.folder.glob(f"{STATE_FOLDER}/*"):
            remove_leftovers(state)


@contextlib.contextmanager
def submitting() -> Iterator[Callable[..., Run]]:
    """`submit(config, runtime_only=False, before=...)`: submitted without the checks of `skiff
    launch`; `before(folder)` is called when there is a run folder. Leaving the block ends all."""
    runs: list[Run] = []

    def call(
        config: Config,
        *,
        runtime_only: bool = False,
        before: Callable[[Path], None] = lambda _: None,
    ) -> Run:
        run = Run(run_folder.make(config), config)
        before(run.folder)
        runs.append(run)
        submit(config, run.folder, runtime_only=runtime_only)
        return run

    try:
        yield call
    finally:
        for run in runs:
            if left := [job.id for job in run.jobs().values() if not job.ended]:
                scancel(left)
                run.ended()


def check_both_give_up(run: Run, sentence: str) -> None:
    """The server, as the trainer does not come; and the trainer, when its turn has come, at once
    and for the same reason."""
    until(lambda: run.jobs()["runtime"].ended)
    assert run.jobs()["runtime"].exit == 3
    assert sentence in "\n".join(status(run.folder))
    job_id = run.jobs()["train"].id
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now"], check=True)
    assert run.ended()["train"].exit == 3
    assert sentence in (run.folder / "logs" / f"slurm.{job_id}.log").read_text()


def plant_stale(folder: Path) -> None:
    """The file of a dead job's server, in a run folder in which no job has been."""
    meeting = folder / "rendezvous" / "01"
    meeting.mkdir()
    place = {"url": "http://127.0.0.1:9", "job": "999", "attempt": 1, "nonce": "dead"}
    (meeting / "runtime-dead.json").write_text(json.dumps(place))


STALE = "runtime-dead.json is of attempt 1, job 999: it is stale and not believed"
