"""A training from its images, submitted to a real Slurm of this host."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch.status import status

from ..slurm.runs import nodes, submitting

RUN_SECONDS = 900.0

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.usefixtures("slurm")
def test_a_het_job_from_the_images_takes_a_step(
    make_config: Callable[..., Config], model: Path
) -> None:
    ensure_sandbox_image()
    config = make_config(model={"path": str(model)}, runtime={"host": "0.0.0.0"}, slurm=nodes())
    with submitting() as submit:
        run = submit(config)
        jobs = run.ended(RUN_SECONDS)
    states = {half: (job.nodes, job.state, job.exit) for half, job in jobs.items()}
    assert states == {
        "runtime": ("cpu1", "COMPLETED", 0),
        "train": ("gpu1", "COMPLETED", 0),
    }, "\n".join(status(run.folder))
    assert [event["step"] for event in events.read(run.folder, "step")] == [1]
    assert (run.folder / "model" / "policy" / "config.json").is_file()
