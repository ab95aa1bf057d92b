"""What the wrappers in sbatch/ call within a job that somebody has submitted himself:
`python -m skiff.launch.by_hand het|runtime|train PROFILE [--url URL]`.

Makes the run folder and in it the script that `skiff launch` would have submitted, and prints that
script's path. `skiff status`, `logs` and `cancel` then know the run. Not covered: requeueing, for
which a job would have to find its run folder again.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path
from typing import Any

from skiff.attempts import attempt_folder
from skiff.config import Config, load_config
from skiff.config.slurm import Slurm
from skiff.errors import ConfigError, SkiffError
from skiff.files import write_atomic
from skiff.launch import run_folder
from skiff.launch.sbatch import Shape, sbatch_text
from skiff.launch.submit import make_key, note_jobs
from skiff.train.inputs import check_inputs


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Prepare a run within a job.")
    parser.add_argument("shape", choices=[shape.value for shape in Shape])
    parser.add_argument("profile", type=Path)
    parser.add_argument("--url", help="train: of the runtime server")
    given = parser.parse_args()
    overrides: dict[str, Any] = {"slurm.requeues": 0}
    if given.url:
        overrides["runtime.url"] = given.url
    try:
        config = load_config(given.profile, overrides)
        print(prepare(config, Shape(given.shape), os.environ["SLURM_JOB_ID"]))
    except SkiffError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


def prepare(config: Config, shape: Shape, job_id: str) -> Path:
    """Make a run of job `job_id`; returns the script to go on with. Raises SkiffError."""
    if (config.runtime.url is None) == (shape is Shape.TRAINER):
        raise ConfigError(
            "a trainer alone needs it, and nothing else does", where="runtime.url", remedy="--url"
        )
    if shape is not Shape.RUNTIME:
        check_inputs(config)
    run_dir = run_folder.make(config)
    make_key(run_dir)
    attempt = run_folder.new_attempt(run_dir)
    folder = attempt_folder(run_dir, attempt)
    script = folder / f"{shape.value}.sbatch"
    slurm = config.slurm or Slurm()
    python, alone = Path(sys.executable), shape is not Shape.HET
    text = sbatch_text(config, slurm, run_dir, attempt, shape, python=python, alone=alone)
    write_atomic(script, text)
    note_jobs(folder, {shape: job_id})
    return script


if __name__ == "__main__":
    main()
