"""A real Slurm of two nodes on this host, and runs that are submitted to it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff.config import Config
from skiff.config.load import dump_toml
from skiff.launch import run_folder
from skiff.launch.slurm import Job, scancel
from skiff.launch.status import jobs_of
from skiff.launch.submit import submit
from skiff.podman import check_podman
from skiff.runtime.podman_backend import LABEL
from skiff.runtime.server import STATE_FOLDER

TOOL = Path(__file__).parents[2] / "tools" / "slurm-test"
SECONDS = 60.0


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmTool]:
    """Slurm's programs reach it, and no other one."""
    folder = tmp_path_factory.mktemp("slurm") / "one"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
        try:
            subprocess.run([TOOL, "start", folder], check=True, timeout=SECONDS)
            yield SlurmTool(folder)
        finally:
            subprocess.run([TOOL, "stop", folder], check=True, timeout=2 * SECONDS)
        assert not folder.exists()
        assert processes_of(folder) == []


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

    def published(self, attempt: int = 1) -> Path:
        """The server's file, once it is there."""
        folder = self.folder / "rendezvous" / f"{attempt:02d}"
        return Path(until(lambda: sorted(folder.glob("runtime-*.json")))[0])

    def published_now(self) -> list[Path]:
        """All servers' files."""
        return sorted(self.folder.glob("rendezvous/*/runtime-*.json"))

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


class SlurmTool:
    """tools/slurm-test on the running Slurm."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, command: str, *arguments: str) -> None:
        subprocess.run([TOOL, command, self._folder, *arguments], check=True, timeout=2 * SECONDS)


DRIVER = """
import functools, pathlib, sys
from skiff.launch import half
half.run_half = functools.partial(half.run_half, entrypoints=pathlib.Path({entrypoints!r}))
assert sys.argv[1:3] == ["-m", "skiff.launch.half"]
del sys.argv[1:3]
half.main()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stand_in(body, shell="")`: jobs that are submitted from now on run the Python program `body`
    as their trainer; all else is real. `shell` is run on a node before each half."""

    def call(body: str, *, shell: str = "") -> None:
        folder = tmp_path / "entrypoints"
        folder.mkdir()
        (folder / "train").write_text(body)
        (folder / "runtime").symlink_to(TOOL.parents[1] / "entrypoints" / "runtime")
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.format(entrypoints=str(folder)))
        python = tmp_path / "python"
        text = f'#!/bin/bash\n{shell}\nexec "{sys.executable}" "{driver}" "$@"\n'
        python.write_text(text)
        python.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(python))

    return call


@pytest.fixture
def profile(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Sections of a profile for this Slurm, with a model that looks like one."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return {
        "run": {"name": "tiny", "folder": str(tmp_path / "runs")},
        "model": {"path": str(model), "context_tokens": 8192},
        "runtime": {"host": "0.0.0.0"},
        "hardware": {"platform": "cpu", "dtype": "float32"},
        "slurm": {
            "runtime": {"partition": "cpu", "cpus": 2},
            "trainer": {"partition": "gpu", "cpus": 2, "gres": "gpu:2"},
        },
    }


@pytest.fixture
def write(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> Callable[[dict[str, dict[str, Any]]], Path]:
    """`write(profile)`: the file of the whole profile."""

    def call(profile: dict[str, dict[str, Any]]) -> Path:
        file = tmp_path / "profile.toml"
        file.write_text(dump_toml(runtime_config(**profile)))
        return file

    return call


@pytest.fixture
def submit_run(runtime_config: Callable[..., Config]) -> Iterator[Callable[..., Run]]:
    """`submit_run(profile, runtime_only=False, before=...)`: submitted without the checks of
    `skiff launch`; `before(folder)` is called when there is a run folder."""
    runs: list[Run] = []

    def call(
        profile: dict[str, dict[str, Any]],
        *,
        runtime_only: bool = False,
        before: Callable[[Path], None] = lambda _: None,
    ) -> Run:
        config = runtime_config(**profile)
        run = Run(run_folder.make(config), config)
        before(run.folder)
        runs.append(run)
        submit(config, run.folder, runtime_only=runtime_only)
        return run

    yield call
    for run in runs:
        if left := [job.id for job in run.jobs().values() if not job.ended]:
            scancel(left)
            run.ended()
