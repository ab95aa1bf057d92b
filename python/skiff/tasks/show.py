"""Tasks as text for people: `skiff tasks list`, `show` and `validate`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from skiff.tasks.sources import SPECS
from skiff.tasks.task import PassGrade, Task
from skiff.tasks.validate import Verdict

_PROMPT_CHARS = 70


def sources_table() -> Table:
    """The task specs there are."""
    table = Table("spec", "holds", title="task specs")
    for source, holds in SPECS.items():
        table.add_row(f"{source}:...", Text(holds))
    return table


def tasks_table(tasks: Sequence[Task], *, title: str) -> Table:
    """One task a row."""
    table = Table("id", "grade", "image", "prompt", title=f"{title}: {len(tasks)} tasks")
    for task in tasks:
        prompt = " ".join(task.prompt.split())
        short = prompt if len(prompt) <= _PROMPT_CHARS else f"{prompt[:_PROMPT_CHARS]}..."
        table.add_row(Text(task.id), task.grade.kind, Text(task.image), Text(short))
    return table


def task_page(task: Task) -> RenderableType:
    """Everything about one task."""
    facts = Table.grid(padding=(0, 2))
    for name, value in _facts(task):
        facts.add_row(Text(name, style="bold"), Text(value))
    parts: list[RenderableType] = [facts, Panel(Text(task.prompt), title="prompt")]
    for title, text, language in (
        ("setup", task.setup, "bash"),
        ("grade", task.grade.script, "bash"),
        ("gold patch", task.gold_patch, "diff"),
        ("solution", "\n".join(task.solution), "bash"),
    ):
        if text:
            parts.append(Panel(Syntax(text.rstrip("\n"), language, word_wrap=True), title=title))
    return Group(*parts)


def verdicts_table(verdicts: Sequence[Verdict]) -> Table:
    """How many tasks of each source are good, then one row for each that is not."""
    table = Table("task", "gold 1.0", "empty 0.0", "reason", title="validation")
    for source, total in Counter(map(_source, verdicts)).items():
        mine = [verdict for verdict in verdicts if _source(verdict) == source]
        gold = sum(verdict.gold == 1.0 for verdict in mine)
        empty = sum(verdict.empty == 0.0 for verdict in mine)
        table.add_row(source, f"{gold} of {total}", f"{empty} of {total}", "")
    for verdict in verdicts:
        if not verdict.valid:
            table.add_row(
                Text(verdict.task_id), str(verdict.gold), str(verdict.empty), Text(verdict.reason)
            )
    return table


def _source(verdict: Verdict) -> str:
    return verdict.task_id.partition(":")[0]


def _facts(task: Task) -> list[tuple[str, str]]:
    facts = [
        ("id", task.id),
        ("image", task.image),
        ("work folder", task.workdir),
        ("files", ", ".join(file.path for file in task.files)),
        ("hidden", ", ".join(task.hidden)),
        ("verdict", task.grade.kind),
    ]
    if isinstance(task.grade, PassGrade):
        facts += [
            ("fail to pass", ", ".join(task.grade.fail_to_pass)),
            ("pass to pass", str(len(task.grade.pass_to_pass))),
        ]
    return [(name, value) for name, value in facts if value]
