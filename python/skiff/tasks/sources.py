"""Task specs -> tasks: `shell:train`, `synthetic:<package>`, `r2e:<path>`, `swegym:<path>`,
`swebench:<path>`, `tasks:<path>`.

Not covered: specs across a network; every source is local.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import get_args

from skiff.binds import bound
from skiff.errors import TaskError
from skiff.tasks import r2e, shell, swebench
from skiff.tasks.store import newest_synthetic, read_tasks
from skiff.tasks.task import Task

SPECS = {
    "shell": "train | validation: small repair tasks, no dataset needed",
    "synthetic": "<package> or <package>-<version>, made by `skiff tasks build synthetic`",
    "r2e": "<path> of R2E-Gym rows",
    "swegym": "<path> of SWE-Gym rows, with or without eval_script",
    "swebench": "<path> of SWE-bench rows",
    "tasks": "<path> of JSON lines in Skiff's own form",
}


def resolve(
    spec: str, *, limit: int | None = None, skip: AbstractSet[str] = frozenset()
) -> list[Task]:
    """The tasks of one spec in their order, without those in `skip`, at most `limit`.

    Raises TaskError for an unknown source or name (with the nearest valid one), an unreadable row
    or two tasks of one id.
    """
    source, _, rest = spec.partition(":")
    read = _READERS.get(source)
    if read is None:
        raise unknown(source, SPECS, what="task source", where=f"task spec '{spec}'")
    if not rest:
        raise TaskError(
            "names no tasks", where=f"task spec '{spec}'", remedy=f"{source}:{SPECS[source]}"
        )
    tasks = read(rest)
    _check_unique(tasks, spec)
    return [task for task in tasks if task.id not in skip][:limit]


def find(tasks: Iterable[Task], task_id: str) -> Task:
    """The task of this id. Raises TaskError with the nearest one."""
    by_id = {task.id: task for task in tasks}
    if task_id not in by_id:
        raise unknown(task_id, by_id, what="task", where="tasks")
    return by_id[task_id]


def read_skip_list(path: Path) -> set[str]:
    """Task ids, one a line; what follows a blank is the reason. Raises TaskError if unreadable."""
    try:
        lines = bound(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(
            f"the skip list cannot be read: {error}",
            where=str(path),
            remedy="`skiff tasks validate` writes one; or leave tasks.skip_list out",
        ) from error
    return {line.split()[0] for line in lines if line.strip() and not line.startswith("#")}


def unknown(name: str, valid: Iterable[str], *, what: str, where: str) -> TaskError:
    """The error for a name that is not among the valid ones."""
    names = list(valid)
    near = difflib.get_close_matches(name, names, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"valid: {', '.join(names[:8])}"
    return TaskError(f"unknown {what} '{name}'", where=where, remedy=hint)


def _shell(name: str) -> list[Task]:
    for split in get_args(shell.Split):
        if name == split:
            return shell.tasks(split)
    raise unknown(name, get_args(shell.Split), what="split", where=f"task spec 'shell:{name}'")


def _synthetic(name: str) -> list[Task]:
    return read_tasks(newest_synthetic(name))


_READERS: dict[str, Callable[[str], list[Task]]] = {
    "shell": _shell,
    "synthetic": _synthetic,
    "r2e": lambda rest: r2e.read(bound(Path(rest))),
    "swegym": lambda rest: swebench.read(bound(Path(rest)), "swegym"),
    "swebench": lambda rest: swebench.read(bound(Path(rest)), "swebench"),
    "tasks": lambda rest: read_tasks(bound(Path(rest))),
}
FILE_KINDS = ("r2e", "swegym", "swebench", "tasks")  # what follows the colon is a path


def _check_unique(tasks: list[Task], spec: str) -> None:
    seen: set[str] = set()
    for task in tasks:
        if task.id in seen:
            raise TaskError(
                f"holds the task {task.id} twice",
                where=f"task spec '{spec}'",
                remedy="remove one of the two rows",
            )
        seen.add(task.id)
