"""`events.jsonl` as typed records, in the order in which they were written.

Every field has a default, since a run may be half done, crashed, or written by another version; a
line whose fields have the wrong type is counted in `Records.unreadable`, not guessed at. A step
that was done twice (a resume from an older checkpoint, or a kill in its midst) counts once, as done
last, and so do its trajectories.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, ValidationError

from skiff import events


def numbers(value: Any) -> Any:
    """Keep the finite numbers of a mapping. A list, as trainers log per micro-batch, becomes its
    mean, and an empty one is left out: there is nothing to plot."""
    if not isinstance(value, Mapping):
        return value
    kept = {}
    for name, entry in value.items():
        parts = entry if isinstance(entry, list) else [entry]
        finite = [
            float(part) for part in parts if isinstance(part, int | float) and math.isfinite(part)
        ]
        if finite:
            kept[str(name)] = sum(finite) / len(finite)
    return kept


Numbers = Annotated[dict[str, float], BeforeValidator(numbers)]


class Record(BaseModel):
    """One event. `time` is UTC epoch seconds."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    time: float = 0.0


class TrajectoryRecord(Record):
    """One trajectory. `reward` None = masked, `detail` says why; `file` is relative to the run."""

    step: int = 0
    split: str = "train"
    task: str = ""
    source: str = ""
    stop: str = "unknown"
    detail: str = ""
    reward: float | None = None
    turns: int = 0
    prompt_tokens: int = 0
    response_tokens: int = 0
    generated_tokens: int = 0
    seconds: Numbers = {}
    file: str | None = None


class StepRecord(Record):
    """One training step: wall seconds by phase, `seconds["step"]` the whole, and its metrics."""

    step: int
    seconds: Numbers = {}
    metrics: Numbers = {}


class ValidationRecord(Record):
    """One pass over the validation tasks; masked trajectories are not among `graded`."""

    step: int
    solved: float = 0
    graded: int = 0
    masked: int = 0

    @property
    def rate(self) -> float | None:
        """Share solved of those graded; None when none was."""
        return self.solved / self.graded if self.graded else None


class PhaseRecord(Record):
    """A part of the start-up or of the whole run that ended at `time` after `seconds`."""

    name: str
    seconds: float = 0.0


class CheckpointRecord(Record):
    step: int
    path: str = ""


class ErrorRecord(Record):
    what: str = ""


class AlertRecord(Record):
    """Something that is no fault yet."""

    what: str = ""


class GpuRecord(Record):
    """The GPUs of a node at a moment; None where one does not tell. Memory in MiB, `busy` in
    percent."""

    used_mib: tuple[float | None, ...] = ()
    total_mib: tuple[float | None, ...] = ()
    busy: tuple[float | None, ...] = ()


class FinishedRecord(Record):
    exit_code: int = 0
    reason: str = ""


KINDS: dict[str, type[Record]] = {
    "trajectory": TrajectoryRecord,
    "step": StepRecord,
    "validation": ValidationRecord,
    "phase": PhaseRecord,
    "checkpoint": CheckpointRecord,
    "error": ErrorRecord,
    "alert": AlertRecord,
    "gpu": GpuRecord,
    "finished": FinishedRecord,
}


START = ("phase_begin", "runtime")  # what a trainer does first
STARTS = (START, ("phase_begin", "serve"))  # that of a server without a trainer


@dataclass(frozen=True)
class Records:
    """All events of one run. `steps` and `validations` are sorted and hold each step once."""

    trajectories: list[TrajectoryRecord]
    steps: list[StepRecord]
    validations: list[ValidationRecord]
    phases: list[PhaseRecord]
    checkpoints: list[CheckpointRecord]
    errors: list[ErrorRecord]
    alerts: list[AlertRecord]
    gpus: list[GpuRecord]
    finished: FinishedRecord | None  # None while running, after a kill, and after a resume
    cancelled: bool  # by `skiff cancel`, and not begun again
    first_time: float | None
    last_time: float | None
    unreadable: int


def read_records(run_dir: Path) -> Records:
    """Read `run_dir`/events.jsonl; a missing file gives empty records."""
    parsed: list[Record] = []
    sampled: list[tuple[int, TrajectoryRecord]] = []  # with the number of the start before it
    starts = unreadable = 0
    cancelled = False
    for event in events.read(run_dir):
        what = (event.get("kind"), event.get("name"))
        starts += what == START
        cancelled = what[0] == "cancelled" or (cancelled and what not in STARTS)
        try:
            record = KINDS.get(str(event.get("kind")), Record).model_validate(event)
        except ValidationError:
            unreadable += 1
            continue
        parsed.append(record)
        if isinstance(record, TrajectoryRecord):
            sampled.append((starts, record))
    times = [record.time for record in parsed if record.time]
    # A look at GPUs, a copy of the folder or the other half's error may come after the end.
    late = (AlertRecord, GpuRecord, ErrorRecord)
    last = next((record for record in reversed(parsed) if not isinstance(record, late)), None)
    return Records(
        trajectories=of_the_last_start(sampled),
        steps=last_of_each_step(only(StepRecord, parsed)),
        validations=last_of_each_step(only(ValidationRecord, parsed)),
        phases=only(PhaseRecord, parsed),
        checkpoints=only(CheckpointRecord, parsed),
        errors=only(ErrorRecord, parsed),
        alerts=only(AlertRecord, parsed),
        gpus=only(GpuRecord, parsed),
        finished=last if isinstance(last, FinishedRecord) else None,
        cancelled=cancelled,
        first_time=min(times, default=None),
        last_time=max(times, default=None),
        unreadable=unreadable,
    )


def of_the_last_start(sampled: list[tuple[int, TrajectoryRecord]]) -> list[TrajectoryRecord]:
    """Of each step and split the trajectories that followed the last start of a trainer."""
    newest = {(record.split, record.step): start for start, record in sampled}
    return [record for start, record in sampled if newest[record.split, record.step] == start]


def only[R: Record](kind: type[R], records: list[Record]) -> list[R]:
    """The records of one kind, in file order."""
    return [record for record in records if isinstance(record, kind)]


def last_of_each_step[S: (StepRecord, ValidationRecord)](records: list[S]) -> list[S]:
    """Sorted by step; of a step that was done again after a resume, the last."""
    by_step = {record.step: record for record in records}
    return [by_step[step] for step in sorted(by_step)]
