"""`skiff tasks validate` in real sandboxes, and what people see of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress
from skiff.config import Config
from skiff.sandbox.client import RuntimeClient
from skiff.tasks import shell
from skiff.tasks.show import sources_table, task_page, tasks_table, verdicts_table
from skiff.tasks.sources import read_skip_list, resolve
from skiff.tasks.task import ScriptGrade, Task
from skiff.tasks.validate import Verdict, validate, write_skip_list


@pytest.fixture
def console() -> Console:
    return Console(width=160, record=True, file=None, quiet=False, force_terminal=False)


def shown(console: Console, thing: object) -> str:
    with console.capture() as capture:
        console.print(thing)
    return capture.get()


def variant(task: Task, name: str, **fields: object) -> Task:
    return task.model_copy(update={"id": f"test:{name}", **fields})


async def test_every_kind_of_outcome(
    runtime_client: RuntimeClient, sandbox_config: Config, tmp_path: Path
) -> None:
    good = shell.tasks("validation")[0]
    tasks = [
        good,
        variant(good, "gold", solution=("true",)),
        variant(good, "empty", grade=ScriptGrade(script="true")),
        variant(good, "setup", setup="echo broken; exit 1"),
        variant(good, "image", image="localhost/skiff/none:1"),
    ]
    with Progress(disable=True) as progress:
        verdicts = await validate(tasks, runtime_client, sandbox_config, progress=progress)
        assert progress.tasks[0].completed == len(tasks)
    assert [verdict.task_id for verdict in verdicts] == [task.id for task in tasks]
    assert [verdict.valid for verdict in verdicts] == [True, False, False, False, False]
    reasons = [verdict.reason for verdict in verdicts]
    assert reasons[1] == "the gold patch scores 0.0: exit 1"
    assert reasons[2] == "no patch scores 1.0: exit 0"
    assert "broken" in reasons[3]
    assert "localhost/skiff/none:1 does not exist" in reasons[4]
    assert (verdicts[4].gold, verdicts[4].empty) == (None, None)

    path = tmp_path / "new" / "skip.txt"
    assert write_skip_list(path, verdicts) == 4
    assert read_skip_list(path) == {"test:gold", "test:empty", "test:setup", "test:image"}
    assert path.read_text().count("\n") == 4


def test_a_skipped_task_is_not_resolved(tmp_path: Path) -> None:
    first, second = resolve("shell:train", limit=2)
    write_skip_list(tmp_path / "skip.txt", [Verdict(first.id, 0.0, 0.0, "two\nlines")])
    assert resolve("shell:train", limit=1, skip=read_skip_list(tmp_path / "skip.txt")) == [second]


def test_tables(console: Console) -> None:
    tasks = shell.tasks("validation")[:3]
    assert "swebench:..." in shown(console, sources_table())
    text = shown(console, tasks_table(tasks, title="shell:validation"))
    assert all(task.id in text for task in tasks)
    verdicts = [Verdict(tasks[0].id, 1.0, 0.0), Verdict(tasks[1].id, 0.0, 0.0, "the reason")]
    text = shown(console, verdicts_table(verdicts))
    assert "1 of 2" in text
    assert "2 of 2" in text
    assert tasks[1].id in text
    assert "the reason" in text


def test_a_task_as_a_page(console: Console) -> None:
    task = shell.tasks("validation")[0]
    text = shown(console, task_page(task.model_copy(update={"prompt": "[bold]not markup[/bold]"})))
    assert "[bold]not markup[/bold]" in text
    assert task.solution[1] in text
    assert task.image in text
