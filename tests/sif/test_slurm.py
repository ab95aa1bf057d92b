"""A training from its images, submitted to a real Slurm of this host."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff import events
from skiff.config import Config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
from skiff.launch.slurm import scancel
from skiff.launch.status import jobs_of, status
from skiff.launch.submit import submit

TOOL = Path(__file__).parents[2] / "tools" / "slurm-test"
START_SECONDS = 120.0
RUN_SECONDS = 900.0

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A running Slurm, and the section of a profile for it."""
    folder = tmp_path / "slurm"
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    try:
        subprocess.run([TOOL, "start", folder], check=True, timeout=START_SECONDS)
        yield {
            "runtime": {"partition": "cpu", "cpus": 2},
            "trainer": {"partition": "gpu", "cpus": 2, "gres": "gpu:2"},
        }
    finally:
        subprocess.run([TOOL, "stop", folder], check=True, timeout=START_SECONDS)


def test_a_het_job_from_the_images_takes_a_step(
    make_config: Callable[..., Config], model: Path, slurm: dict[str, Any]
) -> None:
    ensure_sandbox_image()
    config = make_config(model={"path": str(model)}, runtime={"host": "0.0.0.0"}, slurm=slurm)
    run_dir = run_folder.make(config)
    ids = submit(config, run_dir)
    try:
        _wait(lambda: all(job.ended for _, job in jobs_of(run_dir)), RUN_SECONDS)
    finally:
        scancel(list(ids.values()))
    states = {half: (job.nodes, job.state, job.exit) for half, job in jobs_of(run_dir)}
    assert states == {
        "runtime": ("cpu1", "COMPLETED", 0),
        "train": ("gpu1", "COMPLETED", 0),
    }, "\n".join(status(run_dir))
    assert [event["step"] for event in events.read(run_dir, "step")] == [1]
    assert (run_dir / "model" / "policy" / "config.json").is_file()
    _wait(lambda: _left(run_dir) == [], START_SECONDS)


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.5)


def _left(run_dir: Path) -> list[str]:
    """Living processes that name the run."""
    commands = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(run_dir) in command]
