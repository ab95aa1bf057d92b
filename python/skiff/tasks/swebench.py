"""`swebench:<path>` and `swegym:<path>`: rows as published.

A row with `eval_script` (the SWE-Gym subset) is graded by that script's exit status, as SkyRL does;
any other by FAIL_TO_PASS and PASS_TO_PASS over the files of `test_patch`, with pytest's -rA output.
Not covered: repositories with another test runner (NOT_PYTEST) unless the row has an eval_script:
their rows are left out, with a warning; re-installation of the package before the tests (the images
hold editable installs).
"""

from __future__ import annotations

import logging
from pathlib import Path, PurePosixPath
from shlex import quote
from typing import Literal

from skiff.tasks.diffs import touched_paths
from skiff.tasks.rows import Row, read_rows
from skiff.tasks.task import PassGrade, ScriptGrade, Task

Family = Literal["swebench", "swegym"]

WORKDIR = "/testbed"
NOT_PYTEST = frozenset({"django/django", "python/mypy", "sympy/sympy"})
_log = logging.getLogger(__name__)
_ACTIVATE = "/opt/miniconda3/bin/activate"
_PATH = (
    "/opt/miniconda3/envs/testbed/bin:/opt/miniconda3/bin:"
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)


def read(path: Path, family: Family) -> list[Task]:
    """The rows of a dataset that can be graded. Raises TaskError naming file, row and field."""
    rows = list(read_rows(path))
    covered = [row for row in rows if row.values.get("eval_script") or _uses_pytest(row)]
    if len(covered) < len(rows):
        _log.warning(
            "%s: %d of %d rows left out: %s do not test with pytest",
            path, len(rows) - len(covered), len(rows), ", ".join(sorted(NOT_PYTEST)),
        )  # fmt: skip
    return [task(row, family) for row in covered]


def task(row: Row, family: Family) -> Task:
    """One row: `instance_id, repo, problem_statement, patch` and either `eval_script` or
    `test_patch, FAIL_TO_PASS, PASS_TO_PASS` (lists, or JSON strings of lists)."""
    name = row.text("instance_id")
    script = row.text("eval_script", "")
    return Task(
        id=f"{family}:{name}",
        source=family,
        image=image_name(name, family),
        prompt=row.text("problem_statement").strip(),
        workdir=WORKDIR,
        grade=ScriptGrade(script=script) if script else _pass_grade(row),
        gold_patch=row.text("patch"),
        env={"PATH": _PATH},
    )


def image_name(instance_id: str, family: Family) -> str:
    """The published image of an instance; image names are lower case and know no '__'."""
    if family == "swegym":
        return f"xingyaoww/sweb.eval.x86_64.{instance_id.replace('__', '_s_')}:latest".lower()
    return f"swebench/sweb.eval.x86_64.{instance_id.replace('__', '_1776_')}:latest".lower()


def _pass_grade(row: Row) -> PassGrade:
    test_patch = row.text("test_patch")
    files = [path for path in touched_paths(test_patch.encode()) if _holds_tests(path)]
    if not files:
        raise row.error("test_patch", "touches no Python file")
    command = f"python -m pytest -rA -p no:cacheprovider {' '.join(map(quote, files))}"
    return PassGrade(
        script=f"if [ -f {_ACTIVATE} ]; then source {_ACTIVATE} testbed; fi\n{command}",
        test_patch=test_patch,
        fail_to_pass=row.names("FAIL_TO_PASS"),
        pass_to_pass=row.names("PASS_TO_PASS"),
    )


def _uses_pytest(row: Row) -> bool:
    return row.text("repo") not in NOT_PYTEST


def _holds_tests(path: str) -> bool:
    return PurePosixPath(path).suffix == ".py"
