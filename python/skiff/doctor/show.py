"""Findings and checks for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from skiff.doctor.after import Diagnosis, Finding
from skiff.doctor.check import Check, Verdict

_COLOURS = {
    Verdict.OK: "green",
    Verdict.WARN: "yellow",
    Verdict.FAIL: "bold red",
    Verdict.ABSENT: "dim",
}


def checks_table(checks: list[Check]) -> Table:
    """One row a check; the remedy stands below what is not right."""
    table = Table(box=box.ROUNDED)
    for heading in ("", "check", "what was found"):
        table.add_column(heading)
    for check in checks:
        name = f"{check.name} on {check.place}" if check.place else check.name
        words = Text(check.what)
        if check.remedy:
            words.append(f"\n-> {check.remedy}", style="bold")
        verdict = Text(check.verdict.value, style=_COLOURS[check.verdict])
        table.add_row(verdict, Text(name), words)
    return table


def show_diagnosis(found: Diagnosis, console: Console) -> None:
    """The run's state, each cause with its remedy and the line that shows it, then the rest."""
    console.print(Text(found.state, style="bold"))
    for finding in found.causes:
        console.print(_finding(finding), soft_wrap=True)
    if not found.causes:
        console.print("nothing known is wrong", style="green")
    for finding in found.findings:
        if finding.harmless:
            words = f"no fault: {finding.line[:80]} ({finding.cause})"
            console.print(Text(words, style="dim"), soft_wrap=True)
    for note in found.notes:
        console.print(Text(note, style="yellow"), soft_wrap=True)


def _finding(finding: Finding) -> RenderableType:
    more = f" and {finding.count - 1} more lines" if finding.count > 1 else ""
    return Group(
        Text(finding.cause, style="red"),
        Padding(Text(f"-> {finding.remedy}"), (0, 0, 0, 2)),
        Padding(Text(f"{finding.where}{more}: {finding.line}", style="dim"), (0, 0, 1, 2)),
    )
