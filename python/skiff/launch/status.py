"""`skiff status` and `skiff logs`: how a submitted run stands, and what its processes say.

Read from slurmctld, the run folder and the runtime servers' health. A server that cannot be reached
from here is said to be so.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path

import httpx
from rich.console import Console
from rich.markup import escape

from skiff.launch import run_folder, slurm
from skiff.launch.local import last_error
from skiff.launch.progress import Progress, read_progress
from skiff.launch.slurm import Job
from skiff.launch.submit import job_ids, was_submitted
from skiff.report.text import duration
from skiff.sandbox.nodes import published

HEALTH_SECONDS = 3.0
POLL_SECONDS = 0.5
WATCH_SECONDS = 5.0
_HALVES = {0: "runtime", 1: "train"}  # of a heterogeneous job, by its group
_COLOURS = {"runtime": "cyan", "train": "green", "verl": "yellow", "slurm": "magenta"}


@dataclass(frozen=True)
class Status:
    """All that is known of a run.

    jobs     (half, job), as far as Slurm still knows them; None: the run was not submitted
    servers  what each runtime server says, by its url
    leases   half on node -> seconds since the last renewal, by that node's clock
    """

    jobs: list[tuple[str, Job]] | None
    servers: dict[str, str]
    leases: dict[str, float]
    progress: Progress

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)

    @property
    def ended(self) -> bool:
        """Nothing of the run is to come."""
        if self.jobs is None:
            return self.progress.state not in ("new", "running")
        return all(job.ended for _, job in self.jobs)


def read_status(run_dir: Path) -> Status:
    """Ask Slurm, the servers and the run folder. Raises SkiffError."""
    run_dir = run_dir.absolute()
    run_folder.check_made(run_dir)
    jobs = jobs_of(run_dir) if was_submitted(run_dir) else None
    progress = read_progress(run_dir)
    if not progress.error and jobs:
        progress = replace(progress, error=_job_error(run_dir, jobs))
    return Status(
        jobs=jobs,
        servers={url: _server(url) for url in published(_meeting(run_dir))},
        leases=dict(_leases(run_dir)),
        progress=progress,
    )


def status(run_dir: Path) -> list[str]:
    """Some lines, one fact each. Raises SkiffError."""
    return status_lines(read_status(run_dir))


def status_lines(found: Status) -> list[str]:
    """The same for a person."""
    lines = [f"{half:<9}{_job(job)}" for half, job in found.jobs or []]
    if found.jobs is None:
        lines.append("jobs     none: the run was not submitted to Slurm")
    elif not found.jobs:
        lines.append("jobs     Slurm knows none of them any more")
    lines += [f"lease    {who}: renewed {age:.0f} s ago" for who, age in found.leases.items()]
    lines += [f"server   {url} {words}" for url, words in found.servers.items()]
    one = found.progress
    if one.step:
        of = f" of {one.steps}" if one.steps else ""
        reward = "" if one.reward is None else f", reward {one.reward:.3f}"
        lines.append(f"step     {one.step}{of}{reward}")
    if one.eta_seconds is not None:
        lines.append(f"ends     in about {duration(one.eta_seconds)}{_too_late(found)}")
    if one.alert:
        lines.append(f"alert    {one.alert}")
    if one.error:
        lines.append(f"error    {one.error}")
    return lines


def watch_status(run_dir: Path, console: Console) -> None:
    """Show the status anew every few seconds, until the run has ended or Ctrl-C."""
    while True:
        found = read_status(run_dir)
        console.clear()
        console.print("\n".join(status_lines(found)), markup=False, highlight=False)
        if found.ended:
            return
        time.sleep(WATCH_SECONDS)


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
    attempt = run_folder.newest_attempt(run_dir)
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


def _meeting(run_dir: Path) -> Path:
    return run_dir / "rendezvous" / run_folder.newest_attempt(run_dir)


def _job(job: Job) -> str:
    words = [f"job {job.id}", job.state.lower()]
    if job.nodes:
        words.append(f"on {job.nodes}")
    if job.reason:
        words.append(f"({job.reason})")
    if job.begins and not job.ended:
        words.append(f"since {job.begins}" if job.state == "RUNNING" else f"from {job.begins}")
    if (left := _left(job)) is not None:
        words.append(f"({duration(left)} to its time limit)")
    if job.ended:
        words.append(f"with exit code {job.exit}")
    return " ".join(words)


def _left(job: Job) -> float | None:
    """Seconds to the time limit of a running job."""
    if job.state != "RUNNING" or not job.ends:
        return None
    return max(0.0, datetime.fromisoformat(job.ends).timestamp() - time.time())


def _too_late(found: Status) -> str:
    """A word on jobs that meet their time limit before the last step."""
    eta = found.progress.eta_seconds
    lefts = [left for _, job in found.jobs or [] if (left := _left(job)) is not None]
    return ", after the time limit" if eta is not None and lefts and min(lefts) < eta else ""


def _server(url: str) -> str:
    try:
        answer = httpx.get(f"{url}/health", timeout=HEALTH_SECONDS, trust_env=False)
        found = answer.json()["sandboxes"].items()
    except httpx.HTTPError as error:
        return f"does not answer here: {error}"
    except (ValueError, LookupError, TypeError, AttributeError):
        return "is none of ours any more: something else answers there"
    return ", ".join(f"{count} {name}" for name, count in found if count)


def _leases(run_dir: Path) -> Iterator[tuple[str, float]]:
    for path in sorted(_meeting(run_dir).glob("lease-*.json")):
        with contextlib.suppress(FileNotFoundError):  # it has just ended
            found = json.loads(path.read_text())
            yield f"{found['half']} on {found['node']}", max(0.0, time.time() - found["time"])


def _job_error(run_dir: Path, jobs: list[tuple[str, Job]]) -> str:
    """What a job said that ended before any half."""
    failed = [job for _, job in jobs if job.state == "FAILED"]
    logs = [run_dir / "logs" / f"slurm.{job.id}.log" for job in failed]
    return next((words for log in logs if (words := last_error(log))), "")
