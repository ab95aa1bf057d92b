"""Why a run ended as it did: every line that it has left behind, held against the known symptoms.

Read are the logs of the newest attempt and of its jobs, its events, and Slurm's word on the jobs as
far as it still knows them. Not covered: what an agent says or sees (that is no fault of the run),
and the logs that Ray keeps of each worker on its node.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from skiff import events
from skiff.doctor.symptom import Symptom
from skiff.doctor.symptoms import SYMPTOMS
from skiff.errors import InfraError
from skiff.launch import run_folder
from skiff.launch.status import jobs_of
from skiff.launch.submit import job_ids, was_submitted
from skiff.report.records import Records, read_records
from skiff.report.summary import PAUSED, state_of
from skiff.train.causes import cause_of

LOG_BYTES = 8 << 20  # of the end of each log; what is older is left out
LINE_CHARS = 400
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RAY_PREFIX = re.compile(r"^\([^)]*pid=[^)]*\) ?")


@dataclass(frozen=True)
class Line:
    """One line of text and where it stands, e.g. logs/verl.01.log:12."""

    where: str
    text: str


@dataclass(frozen=True)
class Finding:
    """A symptom that was found: its first line, and on how many lines it was."""

    name: str
    cause: str
    remedy: str
    where: str
    line: str
    count: int
    harmless: bool


@dataclass(frozen=True)
class Diagnosis:
    """What a run folder tells.

    state  how the run ended, in a phrase
    notes  what could not be looked at
    """

    state: str
    findings: list[Finding]
    notes: list[str]

    @property
    def causes(self) -> list[Finding]:
        return [finding for finding in self.findings if not finding.harmless]

    def as_json(self) -> str:
        return json.dumps(asdict(self), indent=1)


def diagnose(run_dir: Path) -> Diagnosis:
    """Read all that the run has left. Raises ConfigError when `run_dir` is no run folder."""
    run_dir = run_dir.absolute()
    run_folder.check_made(run_dir)
    notes: list[str] = []
    newest = run_folder.newest_attempt(run_dir)
    records = read_records(run_dir)
    reason = _failure(run_dir, newest)
    lines = [
        *_slurm_lines(run_dir, notes),
        *_log_lines(run_dir, newest),
        *_event_lines(run_dir, records, newest),
        *(Line(events.FILE, line) for line in reason.splitlines()),
    ]
    findings = find(lines)
    if reason and all(finding.harmless for finding in findings):
        findings.append(_unknown(run_dir, reason, newest))
    return Diagnosis(state=state_of(records), findings=findings, notes=notes)


def find(lines: Iterable[Line], symptoms: Iterable[Symptom] = SYMPTOMS) -> list[Finding]:
    """Each symptom that some line shows, in the order of `symptoms`."""
    known = tuple(symptoms)
    any_of_them = re.compile("|".join(f"(?:{symptom.pattern})" for symptom in known))
    first: dict[str, tuple[Line, re.Match[str]]] = {}
    counts: dict[str, int] = {}
    for line in lines:
        if not any_of_them.search(line.text):
            continue
        for symptom in known:
            if match := symptom.regex.search(line.text):
                first.setdefault(symptom.name, (line, match))
                counts[symptom.name] = counts.get(symptom.name, 0) + 1
    return [
        _finding(symptom, *first[symptom.name], counts[symptom.name])
        for symptom in known
        if symptom.name in first
    ]


def log_lines(path: Path, name: str) -> Iterator[Line]:
    """The lines of the last LOG_BYTES of a log, without colours and Ray's prefixes."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - LOG_BYTES))
        for number, raw in enumerate(file, 1):
            text = _COLOUR.sub("", raw.decode(errors="replace")).rstrip()
            where = f"{name}:{number}" if size <= LOG_BYTES else name
            yield Line(where, _RAY_PREFIX.sub("", text))


def _finding(symptom: Symptom, line: Line, match: re.Match[str], count: int) -> Finding:
    return Finding(
        name=symptom.name,
        cause=match.expand(symptom.cause),
        remedy=symptom.remedy,
        where=line.where,
        line=line.text.strip()[:LINE_CHARS],
        count=count,
        harmless=symptom.harmless,
    )


def _unknown(run_dir: Path, reason: str, attempt: str) -> Finding:
    """What the run says itself, where no rule knows it."""
    words, _, remedy = reason.partition("\n  -> ")
    log = run_dir / "logs" / f"verl.{attempt}.log"
    return Finding(
        name="unknown",
        cause=words,
        remedy=remedy.strip() or "see the end of the logs: skiff logs RUN",
        where=f"logs/{log.name}" if log.exists() else events.FILE,
        line=cause_of(log) if log.exists() else words,
        count=1,
        harmless=False,
    )


def _failure(run_dir: Path, attempt: str) -> str:
    """Why the attempt failed, as it says itself; "" when it did not, or has not ended."""
    for event in events.read(run_dir, "finished"):
        code = event["exit_code"]
        if event.get("attempt", int(attempt)) == int(attempt) and code not in (0, *PAUSED):
            return str(event["reason"])
    return ""


def _log_lines(run_dir: Path, attempt: str) -> Iterator[Line]:
    wanted = {attempt, *_job_ids(run_dir)}
    for path in sorted((run_dir / "logs").glob("*.log")):
        if path.stem.rpartition(".")[2] in wanted:
            yield from log_lines(path, f"logs/{path.name}")


def _job_ids(run_dir: Path) -> set[str]:
    return set(job_ids(run_dir).values()) if was_submitted(run_dir) else set()


def _event_lines(run_dir: Path, records: Records, attempt: str) -> Iterator[Line]:
    """The attempt's errors and the reasons of its masked trajectories, each once."""
    earlier = [
        event["time"]
        for event in events.read(run_dir, "finished")
        if event.get("attempt") not in (None, int(attempt))
    ]
    begin = max(earlier, default=0.0)
    texts = [error.what for error in records.errors if error.time > begin]
    texts += [alert.what for alert in records.alerts if alert.time > begin]
    masked = [record for record in records.trajectories if record.reward is None]
    texts += [record.detail for record in masked if record.time > begin]
    for text in dict.fromkeys(texts):
        yield from (Line(events.FILE, line) for line in text.splitlines())


def _slurm_lines(run_dir: Path, notes: list[str]) -> list[Line]:
    if not was_submitted(run_dir):
        return []
    try:
        jobs = jobs_of(run_dir)
    except InfraError as error:
        notes.append(f"Slurm could not be asked: {error.what}")
        return []
    return [
        Line(f"slurm job {job.id}", f"JobState={job.state} Reason={job.reason} ExitCode={job.exit}")
        for _, job in jobs
    ]
