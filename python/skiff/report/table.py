"""The summary of a run as a table for the terminal."""

from __future__ import annotations

from collections import Counter

from rich import box
from rich.table import Table
from rich.text import Text

from skiff.report.summary import Summary
from skiff.report.text import duration, number, percent, phase_name, solve_rate

SHOWN_PHASES = 6
SHOWN_FAILURES = 3


def summary_table(summary: Summary) -> Table:
    """Two columns, figure and value; rows without data are left out."""
    table = Table(title=f"{summary.name}: {summary.state}", box=box.ROUNDED, show_header=False)
    table.add_column(style="bold")
    table.add_column()
    for label, value in rows(summary):
        table.add_row(label, Text(value))
    return table


def rows(summary: Summary) -> list[tuple[str, str]]:
    """(label, value) in reading order."""
    records = summary.records
    found = []
    if summary.before is not None:
        label = "validation solve rate" if summary.after is None else "solve rate before"
        found.append((label, solve_rate(summary.before)))
    if summary.after is not None:
        factor = f", {number(summary.improvement, 2)}×" if summary.improvement else ""
        found.append(("solve rate after", solve_rate(summary.after) + factor))
    if records.steps:
        found.append(("steps", f"{len(records.steps)} (last: {records.steps[-1].step})"))
    if summary.trajectories:
        speed = number(summary.trajectories_per_minute)
        found.append(("trajectories", f"{summary.trajectories:,} ({speed} a minute)"))
        found.append(("masked", f"{summary.masked} (infrastructure failures, never scored 0)"))
        failures = list(summary.masked_because.items())[:SHOWN_FAILURES]
        found += [("", f"{count} × {detail}") for detail, count in failures]
        found.append(("stop reasons", ", ".join(f"{k} {n:,}" for k, n in summary.stops.items())))
    if summary.generated_tokens_per_second is not None:
        speed = number(summary.generated_tokens_per_second)
        found.append(("generated tokens a second", f"{speed} (while rolling out, tools included)"))
    if summary.time_shares:
        shares = list(summary.time_shares.items())[:SHOWN_PHASES]
        found.append(
            ("step time", ", ".join(f"{phase_name(k)} {percent(share)}" for k, share in shares))
        )
    if records.phases:
        found.append(
            (
                "phases",
                ", ".join(f"{phase_name(p.name)} {duration(p.seconds)}" for p in records.phases),
            )
        )
    if summary.elapsed_seconds is not None:
        found.append(("elapsed", duration(summary.elapsed_seconds)))
    if records.checkpoints:
        last = records.checkpoints[-1]
        found.append(("last checkpoint", f"step {last.step}: {last.path}"))
    found += [("error", error.what) for error in records.errors]
    alerts = Counter(alert.what for alert in records.alerts)
    found += [("alert", f"{count} × {what}") for what, count in alerts.items()]
    if records.unreadable:
        found.append(("unreadable events", str(records.unreadable)))
    return found
