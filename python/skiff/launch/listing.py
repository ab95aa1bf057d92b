"""`skiff list`: the runs below a folder, the newest first."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich import box
from rich.table import Table
from rich.text import Text

from skiff.errors import ConfigError
from skiff.launch.progress import Progress, read_progress
from skiff.launch.run_folder import CONFIG
from skiff.launch.submit import job_ids, was_submitted
from skiff.report.text import duration, number

DEPTH = ("*", "*/*")  # below the folder: runs, or folders of runs
QUIET_SECONDS = 3600.0  # without an event: a run may have been killed


@dataclass(frozen=True)
class Row:
    """A run, and the ids of its newest jobs."""

    path: str
    jobs: list[str]
    progress: Progress


def runs_below(folder: Path) -> list[Row]:
    """The runs in `folder` and in the folders of it. Raises ConfigError when there is none such."""
    if not folder.is_dir():
        raise ConfigError("no such folder", where=str(folder), remedy="name what run.folder names")
    found = [
        path.parent
        for pattern in DEPTH
        for path in folder.glob(f"{pattern}/{CONFIG}")
        if (path.parent / "attempts").is_dir()
    ]
    rows = [Row(str(path), _jobs(path), read_progress(path)) for path in found]
    return sorted(rows, key=lambda row: row.progress.age_seconds or 0.0)


def listing_json(rows: Sequence[Row]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1)


def listing_table(rows: Sequence[Row]) -> Table:
    """One line a run."""
    table = Table(box=box.SIMPLE, expand=True)
    for heading in ("run", "state", "jobs", "step", "reward", "age"):
        table.add_column(heading, no_wrap=True)
    table.add_column("last error", no_wrap=True, overflow="ellipsis", ratio=1)  # what is left
    for row in rows:
        one = row.progress
        step = f"{one.step}/{one.steps}" if one.steps else str(one.step)
        words = (
            *(one.name, _state(one), " ".join(row.jobs), step),
            *(number(one.reward), duration(one.age_seconds)),
            one.error.partition("\n")[0],
        )
        table.add_row(*map(Text, words))
    return table


def _state(one: Progress) -> str:
    quiet = one.quiet_seconds or 0.0
    if one.state == "running" and quiet > QUIET_SECONDS:
        return f"running, quiet for {duration(quiet)}"
    return one.state


def _jobs(run_dir: Path) -> list[str]:
    return list(job_ids(run_dir).values()) if was_submitted(run_dir) else []
