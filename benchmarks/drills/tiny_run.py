"""What the drills share: a small run of a random tiny model, a Slurm of this host, and what is left
of a run."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.images.definitions import find_image
from skiff.podman import check_podman
from skiff.runtime.podman_backend import LABEL
from skiff.runtime.server import STATE_FOLDER
from skiff.train import tiny

CLONE = Path(__file__).parents[2]
TOOL = CLONE / "tools" / "slurm-test"
TINY = CLONE / "tests" / "tiny.toml"
SECONDS = 1200.0


def make_config(folder: Path, images: Path | None, **changed: dict[str, Any]) -> Config:
    """Steps of four short trajectories on the CPU, saved each; model and runs are in `folder`.
    `images` is the folder of the SIFs, None for a run from the clone."""
    model = folder / "model"
    if not model.exists():
        tiny.make_shell_model(model)
    data: dict[str, dict[str, Any]] = tomllib.loads(TINY.read_text())
    data["run"] = {"name": "drill", "folder": str(folder / "runs")}
    data["model"]["path"] = str(model)
    data["train"] |= {"save_every": 1, "export": False}
    if images is not None:
        halves = {"runtime": "runtime", "trainer": "trainer-cpu"}
        data["images"] = {
            half: str(images.absolute() / find_image(name).file_name())
            for half, name in halves.items()
        }
    for section, values in changed.items():
        data.setdefault(section, {}).update(values)
    return parse_config(data)


def slurm_sections(**changed: Any) -> dict[str, dict[str, Any]]:
    """What of a profile is for the Slurm of this host."""
    halves = {
        "runtime": {"partition": "cpu", "cpus": 2},
        "trainer": {"partition": "gpus", "cpus": 2},
    }
    return {"runtime": {"host": "0.0.0.0"}, "slurm": {**halves, **changed}}


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A Slurm in the folder `one`, which the programs of this process reach."""
    os.environ["SLURM_CONF"] = str(folder / "one" / "slurm.conf")
    subprocess.run([TOOL, "start", folder / "one"], check=True)
    try:
        yield
    finally:
        subprocess.run([TOOL, "stop", folder / "one"], check=True)


def processes_of(run_dir: Path) -> list[psutil.Process]:
    """Living processes that name the run."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(run_dir) in " ".join(process.info["cmdline"] or [])
    ]


def tree_of(run_dir: Path) -> set[psutil.Process]:
    """The same, and all below them: Ray's do not name the run, nor do those in a container."""
    found = set(processes_of(run_dir))
    everything = list(psutil.process_iter(["ppid"]))
    while True:
        pids = {process.pid for process in found}
        below = {process for process in everything if process.info["ppid"] in pids}
        if below <= found:
            return found
        found |= below


def containers_of(run_dir: Path) -> list[str]:
    """The ids of all containers of the run's servers."""
    found: list[str] = []
    for path in run_dir.glob(f"{STATE_FOLDER}/*/server_id"):
        labelled = f"label={LABEL}={path.read_text()}"
        shown = check_podman(["ps", "--all", "--quiet", "--filter", labelled])
        found += shown.decode().split()
    return found


def print_logs(run_dir: Path) -> None:
    """The end of each log."""
    for path in sorted((run_dir / "logs").iterdir()):
        print(f"--- {path}\n" + "\n".join(path.read_text().splitlines()[-15:]))


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"error: nothing more has happened within {SECONDS:g} s")
        time.sleep(0.5)
    return found


def circumstances(images: Path | None, *, slurm: bool) -> str:
    """A sentence on who has run a drill, from what and on what."""
    user = "root" if os.getuid() == 0 else "an ordinary user"
    git = ["git", "-C", str(CLONE)]
    commit = subprocess.check_output([*git, "describe", "--always"], text=True).strip()
    if subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "python", "entrypoints"]).returncode:
        commit += ", changed"
    halves = "both halves from the clone" if images is None else "both halves from their SIFs"
    where = "submitted to a Slurm of this host" if slurm else "without Slurm"
    return f"By {user}, {halves} at commit {commit}, {where} with {os.cpu_count()} cores."
