"""The run as one self-contained HTML file: figures, plots, settings and sample trajectories.

No script, no external asset: it opens offline, mails well and prints well. A partial run gives a
partial report.
"""

from __future__ import annotations

import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import fmean
from typing import Any

import jinja2

from skiff.files import write_atomic
from skiff.report import svg
from skiff.report.records import GpuRecord, PhaseRecord, StepRecord, TrajectoryRecord
from skiff.report.summary import Summary, summarise, time_split, wilson
from skiff.report.table import rows
from skiff.report.text import duration, number, percent, phase_name
from skiff.report.transcript import StoredTrajectory, load_trajectory, turn_title

FILE = "report.html"
MAX_COLUMNS = 60  # of a bar chart: more steps are grouped
MAX_POINTS = 240  # of a line over time: more are averaged
SMOOTH_FROM = 12  # steps from which a running mean is drawn
SHOWN_CHARS = 6000  # of one text of a sample

# Fixed colours, so that two reports can be laid side by side.
STOP_COLOURS = {"finished": 2, "iterations": 1, "context": 4, "budget": 5, "stuck": 9, "infra": 3}
PHASE_COLOURS = {
    "gen": 0,
    "update_actor": 1,
    "update_critic": 3,
    "old_log_prob": 5,
    "ref": 6,
    "values": 7,
    "update_weights": 4,
    "testing": 2,
    "save_checkpoint": 8,
    "other": 9,
}
METRICS = {
    "entropy": "Entropy of the policy",
    "grad_norm": "Gradient norm",
    "kl": "KL to the reference policy",
    "critic_loss": "Critic loss",
}


@dataclass(frozen=True)
class Figure:
    """A titled plot with one sentence on what it shows."""

    title: str
    caption: str
    plot: str  # SVG


@dataclass(frozen=True)
class Tile:
    """A headline figure."""

    label: str
    value: str
    detail: str = ""


@dataclass(frozen=True)
class Sample:
    """A stored trajectory and why it was chosen."""

    reason: str
    trajectory: StoredTrajectory


def write_report(run_dir: Path) -> Path:
    """Write `run_dir`/report.html (whole or not at all) and return its path.

    Raises SkiffError as `summarise` does, and when a stored trajectory cannot be read.
    """
    page = render_page(summarise(run_dir), made=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()))
    path = run_dir / FILE
    write_atomic(path, page)
    return path


def render_page(summary: Summary, *, made: str) -> str:
    """The whole page. `made` is printed in the footer."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("skiff.report", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["shorten"] = shorten
    return environment.get_template("page.html.j2").render(
        summary=summary,
        subtitle=subtitle(summary.settings),
        tiles=tiles(summary),
        figures=figures(summary),
        rows=rows(summary),
        samples=samples(summary),
        turn_title=turn_title,
        settings=flat(summary.settings),
        version=version("skiff"),
        made=made,
    )


def shorten(text: str, limit: int = SHOWN_CHARS) -> str:
    """Cut in the middle, saying how much is left out."""
    text = text.strip()
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n… {len(text) - 2 * half:,} characters left out …\n{text[-half:]}"


def subtitle(settings: dict[str, Any]) -> str:
    """Algorithm, agent and tasks in a line, as far as they are known."""
    tasks = settings.get("tasks", {}).get("train", [])
    parts = [
        str(settings.get("train", {}).get("algorithm", "")).upper(),
        f"{settings['agent']['name']} agent" if "name" in settings.get("agent", {}) else "",
        f"tasks {', '.join(tasks)}" if tasks else "",
        f"seed {settings['run']['seed']}" if "seed" in settings.get("run", {}) else "",
    ]
    return " · ".join(part for part in parts if part)


def tiles(summary: Summary) -> list[Tile]:
    """What a reader wants to know first."""
    found = []
    before, after = summary.before, summary.after
    if after is not None and before is not None:
        factor = summary.improvement
        found.append(
            Tile(
                "validation solve rate",
                f"{percent(before.rate)} → {percent(after.rate)}",
                f"{number(factor, 2)}× over {after.step - before.step} steps" if factor else "",
            )
        )
    elif before is not None:
        detail = f"{number(before.solved)} of {before.graded} at step {before.step}"
        found.append(Tile("validation solve rate", percent(before.rate), detail))
    speed = summary.trajectories_per_minute
    found.append(
        Tile("trajectories a minute", number(speed), f"{summary.trajectories:,} for training")
    )
    tokens = summary.generated_tokens_per_second
    found.append(Tile("tokens a second", number(tokens), "while rolling out"))
    found.append(Tile("masked trajectories", f"{summary.masked:,}", "infrastructure failures"))
    steps = len(summary.records.steps)
    found.append(
        Tile("elapsed", duration(summary.elapsed_seconds), f"{steps} step{'s' * (steps != 1)}")
    )
    return found


def figures(summary: Summary) -> list[Figure]:
    """The plots, most wanted first; metrics that the run did not log are left out."""
    records = summary.records
    training = [record for record in records.trajectories if record.split == "train"]
    found = [
        solve_rate_figure(summary),
        reward_figure(training),
        length_figure(training),
        stop_figure(training),
        time_figure(records.steps),
        phase_figure(records.phases),
    ]
    if records.gpus:
        found.append(gpu_figure(records.gpus))
    for key, title in METRICS.items():
        points = [(float(s.step), s.metrics[key]) for s in records.steps if key in s.metrics]
        if points:
            plot = svg.line_chart(with_mean(title, points, colour=6), x_label="step")
            found.append(Figure(title, f"As logged by the trainer ({key}).", plot))
    return found


def solve_rate_figure(summary: Summary) -> Figure:
    points, band = [], []
    for validation in summary.records.validations:
        if validation.rate is not None:
            points.append((float(validation.step), validation.rate))
            low, high = wilson(validation.solved, validation.graded)
            band.append((float(validation.step), low, high))
    plot = svg.line_chart(
        [svg.Line("solve rate", points, band, colour=2)],
        x_label="step",
        y_format=svg.share,
        y_range=(0, max((high for _, _, high in band), default=1.0)),
    )
    caption = "Share of the graded validation trajectories that pass their tests; 95 % interval."
    return Figure("Validation solve rate", caption, plot)


def reward_figure(training: list[TrajectoryRecord]) -> Figure:
    points = step_means(training, lambda record: record.reward)
    plot = svg.line_chart(with_mean("mean reward", points, colour=0), x_label="step")
    return Figure("Reward", "Mean over the graded training trajectories of a step.", plot)


def length_figure(training: list[TrajectoryRecord]) -> Figure:
    lines = [
        svg.Line(
            "whole response, observations included",
            step_means(training, lambda record: record.response_tokens),
            colour=0,
        ),
        svg.Line(
            "generated by the policy",
            step_means(training, lambda record: record.generated_tokens),
            colour=1,
        ),
    ]
    longest = max((y for line in lines for _, y in line.points), default=1.0)
    plot = svg.line_chart(lines, x_label="step", y_range=(0, longest))
    return Figure("Response length", "Mean tokens of a training trajectory.", plot)


def stop_figure(training: list[TrajectoryRecord]) -> Figure:
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for record in training:
        counts[record.step][record.stop] += 1
    shares = {
        step: {stop: count / stops.total() for stop, count in stops.items()}
        for step, stops in counts.items()
    }
    plot = svg.stacked_bars(
        grouped(shares), colours=STOP_COLOURS, x_label="step", y_format=svg.share
    )
    caption = "Why the training trajectories of a step ended; infra = masked, our own failure."
    return Figure("Stop reasons", caption, plot)


def time_figure(steps: list[StepRecord]) -> Figure:
    named: dict[int, dict[str, float]] = defaultdict(lambda: defaultdict(float))
    for step in steps:
        for name, seconds in time_split(step.seconds).items():
            shown = name if name in PHASE_COLOURS else "other"
            named[step.step][phase_name(shown)] += seconds
    colours = {phase_name(name): colour for name, colour in PHASE_COLOURS.items()}
    plot = svg.stacked_bars(grouped(named), colours=colours, x_label="step", y_format=duration)
    return Figure("Where step time goes", "Wall time of a step by phase.", plot)


def phase_figure(phases: list[PhaseRecord]) -> Figure:
    starts = [phase.time - phase.seconds for phase in phases]
    spans = [
        svg.Span(phase_name(phase.name), start - min(starts), phase.seconds)
        for phase, start in zip(phases, starts, strict=True)
    ]
    plot = svg.time_line(spans, x_format=duration)
    return Figure("Time line", "Parts of the run, from its start.", plot)


def gpu_figure(samples: Sequence[GpuRecord]) -> Figure:
    lines = [
        svg.Line("at work, mean of the GPUs", over_time(samples, mean_busy), colour=0),
        svg.Line("memory, fullest GPU", over_time(samples, fullest), colour=3),
    ]
    plot = svg.line_chart(lines, x_label="minutes", y_format=svg.share, y_range=(0, 1))
    caption = "Of the trainer's node; a MIG slice tells neither."
    return Figure("GPUs", caption, plot)


def mean_busy(sample: GpuRecord) -> float | None:
    """Share of the time in which a GPU worked; None when none tells."""
    known = [busy / 100 for busy in sample.busy if busy is not None]
    return fmean(known) if known else None


def fullest(sample: GpuRecord) -> float | None:
    """Used share of the memory of the GPU that has least left; None when none tells."""
    pairs = zip(sample.used_mib, sample.total_mib, strict=False)
    return max((used / total for used, total in pairs if used is not None and total), default=None)


def over_time(
    samples: Sequence[GpuRecord], value: Callable[[GpuRecord], float | None]
) -> list[tuple[float, float]]:
    """(minutes from the first sample, mean of `value`), at most MAX_POINTS of them."""
    begun = samples[0].time
    size = math.ceil(len(samples) / MAX_POINTS)
    points = []
    for start in range(0, len(samples), size):
        chunk = samples[start : start + size]
        known = [measured for sample in chunk if (measured := value(sample)) is not None]
        if known:
            points.append(((chunk[0].time - begun) / 60, fmean(known)))
    return points


def step_means(
    training: list[TrajectoryRecord], value: Callable[[TrajectoryRecord], float | None]
) -> list[tuple[float, float]]:
    """(step, mean of `value`) in order; None (a masked reward) is left out."""
    values: dict[int, list[float]] = defaultdict(list)
    for record in training:
        measured = value(record)
        if measured is not None:
            values[record.step].append(measured)
    return [(float(step), fmean(values[step])) for step in sorted(values)]


def with_mean(name: str, points: Sequence[tuple[float, float]], *, colour: int) -> list[svg.Line]:
    """The points; when there are many, thin and with their running mean over them."""
    if len(points) < SMOOTH_FROM:
        return [svg.Line(name, points, colour=colour)]
    window = max(5, len(points) // 20)
    mean = [
        (x, fmean(y for _, y in points[max(0, index - window + 1) : index + 1]))
        for index, (x, _) in enumerate(points)
    ]
    return [
        svg.Line("each step", points, colour=colour, thin=True),
        svg.Line(f"mean of the last {window}", mean, colour=colour),
    ]


def grouped(by_step: Mapping[int, Mapping[str, float]]) -> list[svg.Column]:
    """One column a step, or the mean of several neighbours when there are many steps."""
    steps = sorted(by_step)
    size = max(1, math.ceil(len(steps) / MAX_COLUMNS))
    columns = []
    for start in range(0, len(steps), size):
        chunk = steps[start : start + size]
        total: dict[str, float] = defaultdict(float)
        for step in chunk:
            for name, value in by_step[step].items():
                total[name] += value
        label = str(chunk[0]) if size == 1 else f"{chunk[0]}–{chunk[-1]}"
        parts = {name: value / len(chunk) for name, value in total.items()}
        columns.append(svg.Column(label, parts))
    return columns


def samples(summary: Summary) -> list[Sample]:
    """Of the first and of the last stored step: one solved, one unsolved, one masked."""
    stored = [
        record
        for record in summary.records.trajectories
        if record.file and (summary.run_dir / record.file).is_file()
    ]
    steps = sorted({record.step for record in stored})
    found = []
    for step in dict.fromkeys([*steps[:1], *steps[-1:]]):
        for outcome in ("solved", "not solved", "masked"):
            chosen = [r for r in stored if r.step == step and outcome_of(r) == outcome]
            if chosen and chosen[0].file:
                trajectory = load_trajectory(summary.run_dir / chosen[0].file)
                found.append(Sample(f"step {step}, {outcome}", trajectory))
    return found


def outcome_of(record: TrajectoryRecord) -> str:
    """solved, not solved or masked."""
    if record.reward is None:
        return "masked"
    return "solved" if record.reward >= 1 else "not solved"


def flat(settings: dict[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """[("rollout.temperature", "1.0"), ...] in the order of config.toml."""
    found = []
    for key, value in settings.items():
        if isinstance(value, dict):
            found += flat(value, f"{prefix}{key}.")
        else:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            found.append((f"{prefix}{key}", shown))
    return found
