"""How far a run is, from its folder alone: steps, reward, time left, last error.

Not covered: a change of the steps' length ahead; the median of those done is taken.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from skiff.report.records import Records, read_records
from skiff.report.summary import PAUSED, read_settings

LAST_STEPS = 20  # of which the median is taken: the first ones of a run are short or long


@dataclass(frozen=True)
class Progress:
    """A run at a moment. Seconds and times are UTC epoch seconds; None: not known.

    step, steps  done, and wanted by the profile
    eta_seconds  until the last step ends, when the run goes on as in its last steps
    state        new, running, done, cancelled, paused (asked to end, and can go on) or failed
                 (CODE); a run that was killed stays running, and quiet_seconds, since its last
                 event, grows
    error        the last one; "" without any
    alert        the last one of a run that has not finished; "" without any
    """

    name: str
    state: str
    step: int
    steps: int | None
    reward: float | None
    eta_seconds: float | None
    age_seconds: float | None
    quiet_seconds: float | None
    error: str
    alert: str


def read_progress(run_dir: Path, *, now: float | None = None) -> Progress:
    """Raises SkiffError when config.toml is no TOML."""
    now = time.time() if now is None else now
    records = read_records(run_dir)
    settings = read_settings(run_dir)
    steps = settings.get("train", {}).get("steps")
    last = records.steps[-1] if records.steps else None
    return Progress(
        name=run_dir.name,
        state=_state(records),
        step=last.step if last else 0,
        steps=steps,
        reward=last.metrics.get("reward_mean") if last else None,
        eta_seconds=_eta(records, steps, now),
        age_seconds=None if records.first_time is None else now - records.first_time,
        quiet_seconds=None if records.last_time is None else now - records.last_time,
        error=last_failure(records),
        alert=records.alerts[-1].what if records.alerts and not records.finished else "",
    )


def last_failure(records: Records) -> str:
    """Why the run has failed, else the last error that it has told of."""
    if records.finished is not None and records.finished.exit_code not in PAUSED:
        return records.finished.reason if records.finished.exit_code else ""
    return records.errors[-1].what if records.errors else ""


def _state(records: Records) -> str:
    code = None if records.finished is None else records.finished.exit_code
    if records.cancelled and (code is None or code in PAUSED):
        return "cancelled"
    if code is None:
        return "running" if records.first_time is not None else "new"
    if code in PAUSED:
        return "paused"
    return f"failed ({code})" if code else "done"


def _eta(records: Records, steps: int | None, now: float) -> float | None:
    """Of a run that goes on: median step, times the steps left, less what the present one has."""
    if steps is None or not records.steps or records.finished is not None or records.cancelled:
        return None
    lengths = [record.seconds["step"] for record in records.steps if "step" in record.seconds]
    left = steps - records.steps[-1].step
    if not lengths or left <= 0:
        return None
    each = median(lengths[-LAST_STEPS:])
    return max(0.0, left * each - min(each, now - records.steps[-1].time))
