"""The figures of one run, computed from its folder; works on a running or crashed run as well.

Not covered: comparing runs (seeds); benchmarks do that over several summaries.
"""

from __future__ import annotations

import math
import tomllib
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skiff.errors import SkiffError
from skiff.report.records import Records, ValidationRecord, read_records
from skiff.train.save_request import SAVED

CONFIG = "config.toml"

PAUSED = (SAVED, 130)  # exit codes of a run that was asked to end (130: by Ctrl-C), and can go on

# verl's timers outside its `step` timer; the others are parts of it.
OUTSIDE_STEP = ("testing",)


@dataclass(frozen=True)
class Summary:
    """Figures are None where the run has nothing to compute them from."""

    run_dir: Path
    name: str
    settings: dict[str, Any]  # config.toml, {} when it is missing
    records: Records
    state: str
    before: ValidationRecord | None  # first validation
    after: ValidationRecord | None  # last validation, when it is not the first
    trajectories: int  # training only
    masked: int  # training only
    masked_because: dict[str, int]  # training only, most frequent first
    trajectories_per_minute: float | None  # over the wall time of the steps
    generated_tokens_per_second: float | None  # over the time in which trajectories were made
    elapsed_seconds: float | None  # first event to last event
    stops: dict[str, int]  # training only, most frequent first
    time_shares: dict[str, float]  # phase -> share of the steps' wall time, largest first

    @property
    def improvement(self) -> float | None:
        """Solve rate after / before; None when either is missing or before is 0."""
        if self.before is None or self.after is None:
            return None
        before, after = self.before.rate, self.after.rate
        return after / before if before and after is not None else None


def summarise(run_dir: Path) -> Summary:
    """Raises SkiffError when `run_dir` is no folder or its config.toml is no TOML."""
    if not run_dir.is_dir():
        raise SkiffError(
            "no such run folder", where=str(run_dir), remedy="name a folder that `skiff run` made"
        )
    records = read_records(run_dir)
    settings = read_settings(run_dir)
    training = [record for record in records.trajectories if record.split == "train"]
    generated = sum(record.generated_tokens for record in training)
    split = [time_split(step.seconds) for step in records.steps]
    wall = sum(sum(parts.values()) for parts in split)
    generating = sum(parts.get("gen", 0.0) for parts in split)
    phases = {name for parts in split for name in parts}
    shares = {name: sum(parts.get(name, 0.0) for parts in split) / wall for name in phases}
    return Summary(
        run_dir=run_dir,
        name=str(settings.get("run", {}).get("name") or run_dir.resolve().name),
        settings=settings,
        records=records,
        state=state_of(records),
        before=records.validations[0] if records.validations else None,
        after=records.validations[-1] if len(records.validations) > 1 else None,
        trajectories=len(training),
        masked=sum(record.reward is None for record in training),
        masked_because=dict(
            Counter(r.detail for r in training if r.reward is None and r.detail).most_common()
        ),
        trajectories_per_minute=60 * len(training) / wall if wall else None,
        generated_tokens_per_second=generated / generating if generating else None,
        elapsed_seconds=elapsed(records),
        stops=dict(Counter(record.stop for record in training).most_common()),
        time_shares=dict(sorted(shares.items(), key=lambda item: -item[1])),
    )


def read_settings(run_dir: Path) -> dict[str, Any]:
    """The run's resolved settings as plain data, so that an older run stays readable."""
    path = run_dir / CONFIG
    if not path.exists():
        return {}
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SkiffError(
            f"not readable as TOML: {error}", where=str(path), remedy="restore or delete the file"
        ) from error


def state_of(records: Records) -> str:
    """One phrase: how the run ended, or that it has not."""
    if records.finished is None:
        return "cancelled" if records.cancelled else "not finished"
    if records.finished.exit_code == 0:
        return "finished"
    reason = records.finished.reason or "no reason given"
    if records.finished.exit_code in PAUSED:
        return reason
    return f"failed with exit code {records.finished.exit_code}: {reason}"


def elapsed(records: Records) -> float | None:
    """Seconds from the first event to the last; a pause before a resume is included."""
    if records.first_time is None or records.last_time is None:
        return None
    return records.last_time - records.first_time


def time_split(seconds: dict[str, float]) -> dict[str, float]:
    """Seconds of one step by phase, whole and without overlap: what no phase accounts for is
    `other`, and phases outside the step's own timer (validation) are added to it."""
    parts = {name: value for name, value in seconds.items() if name != "step" and value > 0}
    inside = sum(value for name, value in parts.items() if name not in OUTSIDE_STEP)
    rest = seconds.get("step", 0.0) - inside
    return {**parts, "other": rest} if rest > 0 else parts


def wilson(solved: float, graded: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's score interval (95 % by default) of the share solved/graded; graded > 0."""
    share = solved / graded
    scale = 1 + z * z / graded
    centre = (share + z * z / (2 * graded)) / scale
    half = z * math.sqrt(share * (1 - share) / graded + z * z / (4 * graded * graded)) / scale
    return max(0.0, centre - half), min(1.0, centre + half)
