"""Is the run folder that this node sees the one that the job was submitted from?

What was submitted is noted in the run folder by its submitter, by the job's id; Slurm tells us that
id without any folder. A node on which the folder is not there, or is another disk's folder of that
name, does not find it. That the halves see each other's writes too is what their leases show.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path

from skiff.errors import InfraError
from skiff.launch.run_folder import CONFIG
from skiff.launch.submit import JOBS

THERE_SECONDS = 5.0  # the folder is older than the job
NOTED_SECONDS = 90.0  # sbatch answers before it is noted, and NFS may show that a minute late
POLL_SECONDS = 0.2
# Of this job; of the heterogeneous job that it is a part of.
_VARIABLES = ("SLURM_JOB_ID", "SLURM_JOB_ID_HET_GROUP_0")


def check_shared(run_dir: Path) -> None:
    """Wait until `run_dir` names our job. Raises InfraError that names node and folder."""
    ours = {os.environ[name] for name in _VARIABLES if name in os.environ}
    _wait(lambda: (run_dir / CONFIG).exists(), THERE_SECONDS, "no run folder", run_dir)
    _wait(lambda: not ours.isdisjoint(_noted(run_dir)), NOTED_SECONDS, "another folder", run_dir)


def _noted(run_dir: Path) -> set[str]:
    """The ids of all jobs that were submitted for the run."""
    files = (run_dir / "attempts").glob(f"*/{JOBS}")
    return {str(job_id) for file in files for job_id in json.loads(file.read_text()).values()}


def _wait(condition: Callable[[], bool], seconds: float, found: str, run_dir: Path) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            node = os.environ.get("SLURMD_NODENAME", "this node")
            raise InfraError(
                f"is not shared: node {node} has {found} there",
                where=str(run_dir),
                remedy="set run.folder to a place that the nodes of both halves and the node you"
                " submit from share",
            )
        time.sleep(POLL_SECONDS)
