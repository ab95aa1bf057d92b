"""`skiff launch`, `skiff cancel`, and `skiff resume` of what was launched: a run folder, the jobs'
scripts in it, and their submission.

attempts/NN/*.sbatch  the scripts as submitted
attempts/NN/jobs.json what each of them became: {"het": "123"} or {"runtime": "123", "train": "124"}
"""

from __future__ import annotations

import json
import secrets
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from skiff import events
from skiff.attempts import attempt_folder
from skiff.config import Config
from skiff.config.secrets import check_in_file
from skiff.errors import ConfigError, SkiffError
from skiff.files import write_atomic
from skiff.images.runnable import check_file
from skiff.launch import run_folder
from skiff.launch.sbatch import Shape, sbatch_text
from skiff.launch.slurm import sbatch, scancel, show_job, terminate
from skiff.train.inputs import check_inputs, check_places

JOBS = "jobs.json"


@dataclass(frozen=True)
class Submission:
    """One job to be. `after`: it may begin when that one has begun."""

    shape: Shape
    text: str
    after: Shape | None = None

    @property
    def file(self) -> str:
        return f"{self.shape.value}.sbatch"

    def options(self, ids: dict[Shape, str]) -> list[str]:
        """sbatch's options on the command line, once the earlier jobs have their ids."""
        if self.after is None:
            return []
        return [f"--dependency=after:{ids[self.after]}", "--kill-on-invalid-dep=yes"]


def submissions(
    config: Config, run_dir: Path, attempt: int, *, runtime_only: bool
) -> list[Submission]:
    """The jobs of an attempt, in the order of their submission. Raises ConfigError."""
    slurm = config.slurm
    if slurm is None:
        raise ConfigError(
            "asks for no nodes",
            where="a profile without [slurm]",
            remedy="add one as in profiles/slurm-mig.toml, or run it here with --local",
        )

    def one(shape: Shape, after: Shape | None = None, *, alone: bool = False) -> Submission:
        python = Path(sys.executable)
        text = sbatch_text(config, slurm, run_dir, attempt, shape, python=python, alone=alone)
        return Submission(shape, text, after)

    if runtime_only:
        return [one(Shape.RUNTIME, alone=True)]
    if config.runtime.url is not None:
        return [one(Shape.TRAINER, alone=True)]
    if slurm.mode == "two-jobs":
        return [one(Shape.RUNTIME), one(Shape.TRAINER, after=Shape.RUNTIME)]
    return [one(Shape.HET)]


def launch(config: Config, console: Console, *, runtime_only: bool, dry_run: bool) -> None:
    """Check what the profile names, make a run folder and submit; a dry run only prints.

    Raises SkiffError and OSError; nothing is then left, in the queue or as a folder.
    """
    planned = submissions(config, place := run_folder.place(config), 1, runtime_only=runtime_only)
    if not runtime_only:
        check_inputs(config)
    _check_files(config, runtime_only=runtime_only)
    if dry_run:
        for job in planned:
            _print(job, place)
        return
    run_dir = run_folder.make(config)
    try:
        ids = submit(config, run_dir, runtime_only=runtime_only)
    except (SkiffError, OSError):
        shutil.rmtree(run_dir)
        raise
    _print_ids(run_dir, ids, console)


def submit_again(run_dir: Path, config: Config, console: Console) -> None:
    """Submit the next attempt of a run, which goes on from its newest whole checkpoint.

    Raises SkiffError, also while a job of the run has not ended.
    """
    with run_folder.lock(run_dir):
        check_ended(run_dir)
        runtime_only = set(job_ids(run_dir)) == {Shape.RUNTIME}
        if not runtime_only:
            check_places(config)
        _check_files(config, runtime_only=runtime_only)
        ids = submit(config, run_dir, runtime_only=runtime_only)
    _print_ids(run_dir, ids, console)


def check_ended(run_dir: Path) -> None:
    """Raises ConfigError while a job of the run waits or runs, InfraError when Slurm is silent."""
    for job_id in job_ids(run_dir).values():
        if not all(part.ended for part in show_job(job_id)):
            raise ConfigError(
                f"has not ended: job {job_id}",
                where=str(run_dir),
                remedy=f"skiff status {run_dir}; skiff cancel {run_dir}",
            )


def submit(config: Config, run_dir: Path, *, runtime_only: bool = False) -> dict[Shape, str]:
    """Submit the next attempt of a run; returns the jobs' ids. Raises SkiffError and OSError; then
    nothing of that attempt is left, in the queue or as a folder."""
    attempt = run_folder.new_attempt(run_dir)
    folder = attempt_folder(run_dir, attempt)
    make_key(run_dir)
    ids: dict[Shape, str] = {}
    try:
        for job in submissions(config, run_dir, attempt, runtime_only=runtime_only):
            write_atomic(folder / job.file, job.text)
            ids[job.shape] = sbatch(folder / job.file, options=job.options(ids))
            note_jobs(folder, ids)
    except (SkiffError, OSError):
        if ids:
            scancel(list(ids.values()))
        shutil.rmtree(folder)
        raise
    return ids


def make_key(run_dir: Path) -> None:
    """The run's key. It is made before any server is there, so that all have the same."""
    key = run_dir / "rendezvous" / "key"
    if not key.exists():
        write_atomic(key, secrets.token_urlsafe(32) + "\n", mode=0o600)


def note_jobs(attempt_dir: Path, ids: dict[Shape, str]) -> None:
    """Write down what `status`, `logs` and `cancel` ask Slurm for."""
    jobs = {shape.value: job_id for shape, job_id in ids.items()}
    write_atomic(attempt_dir / JOBS, json.dumps(jobs, indent=1) + "\n")


def was_submitted(run_dir: Path) -> bool:
    """Has the run ever had jobs?"""
    return any((run_dir / "attempts").glob(f"*/{JOBS}"))


def job_ids(run_dir: Path) -> dict[Shape, str]:
    """The jobs of the newest submission. Raises ConfigError when the run has none."""
    found = sorted((run_dir / "attempts").glob(f"*/{JOBS}"))
    if not found:
        raise ConfigError(
            "was not submitted to Slurm",
            where=str(run_dir),
            remedy="name a folder that `skiff launch` made",
        )
    return {Shape(name): str(job_id) for name, job_id in json.loads(found[-1].read_text()).items()}


def cancel(run_dir: Path) -> None:
    """Cancel what waits, and have what runs end in order. Raises SkiffError.

    A bare scancel signals all processes of a half at once, so that the service by which a server
    removes its sandboxes may be gone before it has done so.
    """
    for job_id in job_ids(run_dir).values():
        parts = show_job(job_id)
        if all(part.ended for part in parts):
            continue
        if any(part.state == "RUNNING" for part in parts):
            terminate(job_id)
        else:
            scancel([job_id])
        events.emit(run_dir, "cancelled", job=job_id)


def _check_files(config: Config, *, runtime_only: bool) -> None:
    """The secrets and images of a job to be. Raises ConfigError."""
    if config.logging.wandb and not runtime_only:
        check_in_file("WANDB_API_KEY")
    for image in (config.images.runtime, config.images.trainer):
        if image is not None:
            check_file(image)


def _print_ids(run_dir: Path, ids: dict[Shape, str], console: Console) -> None:
    lines = [f"run folder: {run_dir}"]
    lines += [f"job {job_id}: {shape.value}" for shape, job_id in ids.items()]
    lines += [f"skiff {command} {run_dir}" for command in ("status", "logs -f", "cancel")]
    console.print("\n".join(lines), markup=False, soft_wrap=True)


def _print(job: Submission, run_dir: Path) -> None:
    ids = dict.fromkeys(Shape, "JOBID")
    script = attempt_folder(run_dir, 1) / job.file
    words = ["sbatch", "--parsable", *job.options(ids), str(script)]
    print(shlex.join(words), file=sys.stderr)  # so that the output is the scripts alone
    print(job.text, end="")
