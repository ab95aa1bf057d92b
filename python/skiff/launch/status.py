"""`skiff status` and `skiff logs`: how a submitted run stands, and what its processes say.

Read from slurmctld, the run folder and the runtime servers' health. A server that cannot be reached
from here is said to be so. Not covered: the time that is left.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from skiff.launch import slurm
from skiff.launch.local import INTERRUPTED, last_error
from skiff.launch.slurm import Job
from skiff.launch.submit import job_ids
from skiff.report.records import Records, read_records
from skiff.sandbox.nodes import published

HEALTH_SECONDS = 3.0
POLL_SECONDS = 0.5
_HALVES = {0: "runtime", 1: "train"}  # of a heterogeneous job, by its group
_COLOURS = {"runtime": "cyan", "train": "green", "verl": "yellow", "slurm": "magenta"}


def status(run_dir: Path) -> list[str]:
    """Some lines, one fact each. Raises SkiffError when the run was not submitted."""
    lines = []
    jobs = jobs_of(run_dir)
    for half, job in jobs:
        lines.append(f"{half:<9}{_job(job)}")
    if not jobs:
        lines.append("jobs     Slurm knows none of them any more")
    lines += [f"server   {_server(url)}" for url in published(_meeting(run_dir))]
    records = read_records(run_dir)
    if records.steps:
        last = records.steps[-1]
        reward = last.metrics.get("reward_mean")
        lines.append(f"step     {last.step}" + ("" if reward is None else f", reward {reward:.3f}"))
    if error := _last_error(run_dir, records, jobs):
        lines.append(f"error    {error}")
    return lines


def jobs_of(run_dir: Path) -> list[tuple[str, Job]]:
    """The halves and their jobs, as far as Slurm still knows them."""
    return [
        (shape.value if job.group is None else _HALVES[job.group], job)
        for shape, job_id in job_ids(run_dir).items()
        for job in slurm.show_job(job_id)
    ]


def show_logs(run_dir: Path, console: Console, *, follow: bool) -> None:
    """Print the newest attempt's logs, each line after its process's name.

    With `follow` also what is appended, until every job has ended.
    """
    job_ids(run_dir)  # raises when there is none
    offsets: dict[Path, int] = {}
    while True:
        ended = not follow or all(job.ended for _, job in jobs_of(run_dir))
        for name, line in _appended(run_dir, offsets):
            colour = _COLOURS.get(name.partition("-")[0], "white")
            console.print(
                f"[{colour}]{escape(name)}[/{colour}] | {escape(line)}",
                highlight=False,
                soft_wrap=True,
            )
        if ended:
            return
        time.sleep(POLL_SECONDS)


def _appended(run_dir: Path, offsets: dict[Path, int]) -> Iterator[tuple[str, str]]:
    """The whole lines since `offsets`, which moves on."""
    attempt = _attempt(run_dir)
    ids = set(job_ids(run_dir).values())
    for path in sorted((run_dir / "logs").glob("*.log")):
        name, _, number = path.stem.rpartition(".")
        if number != attempt and number not in ids:
            continue
        with path.open("rb") as file:
            file.seek(offsets.get(path, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    break
                offsets[path] = offsets.get(path, 0) + len(line)
                yield name, line.decode(errors="replace").rstrip()


def _attempt(run_dir: Path) -> str:
    return max(path.name for path in (run_dir / "attempts").iterdir())


def _meeting(run_dir: Path) -> Path:
    return run_dir / "rendezvous" / _attempt(run_dir)


def _job(job: Job) -> str:
    words = [f"job {job.id}", job.state.lower()]
    if job.nodes:
        words.append(f"on {job.nodes}")
    if job.reason:
        words.append(f"({job.reason})")
    if job.begins and not job.ended:
        words.append(f"since {job.begins}" if job.state == "RUNNING" else f"from {job.begins}")
    if job.ended:
        words.append(f"with exit code {job.exit}")
    return " ".join(words)


def _server(url: str) -> str:
    try:
        found = httpx.get(f"{url}/health", timeout=HEALTH_SECONDS, trust_env=False).json()
    except (httpx.HTTPError, json.JSONDecodeError) as error:
        return f"{url} does not answer here: {error}"
    counts = ", ".join(f"{count} {name}" for name, count in found["sandboxes"].items() if count)
    return f"{url}: {counts}"


def _last_error(run_dir: Path, records: Records, jobs: list[tuple[str, Job]]) -> str:
    """The trainer's, or the cause of its end, or what a job said that ended before any half."""
    if records.finished is not None and records.finished.exit_code not in (0, INTERRUPTED):
        return records.finished.reason
    if records.errors:
        return records.errors[-1].what
    failed = [job for _, job in jobs if job.state == "FAILED"]
    logs = [run_dir / "logs" / f"slurm.{job.id}.log" for job in failed]
    return next((words for log in logs if (words := last_error(log))), "")
