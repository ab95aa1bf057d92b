"""Where Skiff keeps what it builds, and tasks as JSON lines.

`$SKIFF_HOME` (default ~/.cache/skiff) holds `tasks/<source>/*.jsonl`, `images/*.tar` and the
downloads they were made from; all of it can be deleted and is then built again.
Not covered: two processes that build the same thing; the last one wins, whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from pathlib import Path

from pydantic import ValidationError

from skiff.errors import TaskError
from skiff.files import write_atomic
from skiff.tasks.task import Task


def skiff_home() -> Path:
    """`$SKIFF_HOME`, or ~/.cache/skiff. It may not exist yet."""
    return Path(os.environ.get("SKIFF_HOME") or Path.home() / ".cache" / "skiff")


def write_tasks(path: Path, tasks: Iterable[Task]) -> None:
    """Write one task a line, all or nothing; makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{task.model_dump_json()}\n" for task in tasks))


def read_tasks(path: Path) -> list[Task]:
    """Read what write_tasks wrote. Raises TaskError naming the line and the field at fault."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise TaskError(f"cannot be read: {error}", where=str(path)) from error
    return [_task(line, f"{path}, line {number}") for number, line in enumerate(lines, start=1)]


def _task(line: str, where: str) -> Task:
    try:
        return Task.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        raise TaskError(
            f"is no Task: {field}: {first['msg']}",
            where=where,
            remedy="build the file again with `skiff tasks build`",
        ) from error


def synthetic_path(package: str, version: str) -> Path:
    """Where the synthetic tasks of a package are kept."""
    return skiff_home() / "tasks" / "synthetic" / f"{package}-{version}.jsonl"


def newest_synthetic(name: str) -> Path:
    """The file of `<package>` (the one built last) or of `<package>-<version>`."""
    folder = synthetic_path("", "").parent
    pattern = re.compile(rf"{re.escape(name)}(-[0-9].*)?\.jsonl")
    files = [path for path in folder.glob("*.jsonl") if pattern.fullmatch(path.name)]
    if not files:
        raise TaskError(
            f"no synthetic tasks of '{name}' below {folder}",
            where=f"task spec 'synthetic:{name}'",
            remedy=f"skiff tasks build synthetic {name}",
        )
    return max(files, key=lambda path: path.stat().st_mtime)
