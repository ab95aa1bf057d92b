"""Findings and checks for a terminal."""

from __future__ import annotations

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from skiff.doctor.after import Diagnosis
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

    def say(words: str, style: str = "") -> None:
        console.print(Text(words, style=style), soft_wrap=True)

    say(found.state, "bold")
    for finding in found.causes:
        more = f" and {finding.count - 1} more lines" if finding.count > 1 else ""
        say(f"\n{finding.cause}", "red")
        say(f"  -> {finding.remedy}")
        say(f"  {finding.where}{more}: {finding.line}", "dim")
    if not found.causes:
        say("nothing known is wrong", "green")
    for finding in found.findings:
        if finding.harmless:
            say(f"no fault: {finding.line[:80]} ({finding.cause})", "dim")
    for note in found.notes:
        say(note, "yellow")
