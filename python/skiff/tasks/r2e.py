"""`r2e:<path>`: R2E-Gym rows as published, with its set-up and its exact-dictionary verdict.

The tests (`run_tests.sh`, `r2e_tests`) are removed before the agent starts and are there again in
the fresh sandbox that grades. Everything runs with bash. Not covered: packages that upstream's
entry script installs from the network for its own agent tools.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from skiff.tasks.diffs import file_diff
from skiff.tasks.rows import Row, read_rows
from skiff.tasks.task import ExactGrade, Task

SOURCE = "r2e"
_WORKDIRS = {"sympy": "/sympy"}
_ISSUE = re.compile(r"\[ISSUE\](.*)\[/ISSUE\]", re.DOTALL)
_PATH = (
    "/root/.venv/bin:/root/.local/bin:/root/.cargo/bin:"
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
)

# Byte code of the repository may hold the fix; that of .venv is other people's and stays.
SETUP = """
if [ -d .venv ]; then
  mkdir -p /root/.local/bin
  ln -sfn "$PWD/.venv" /root/.venv
  find "$PWD/.venv/bin" -type f -perm -u+x -exec ln -sf -t /root/.local/bin {} +
  find "$PWD/.venv/bin" -type l -name 'python*' -exec ln -sf -t /root/.local/bin {} +
fi
find . -path ./.venv -prune -o -name '*.pyc' -exec rm -f {} +
if [ ! -f run_tests.sh ]; then
  echo "the image has no $PWD/run_tests.sh"
  exit 1
fi
if grep -q r2e_tests run_tests.sh && [ ! -d /r2e_tests ] && [ ! -d r2e_tests ]; then
  echo "the image has neither /r2e_tests nor $PWD/r2e_tests"
  exit 1
fi
""".strip()

# The places are upstream's: the tests see the same paths as when their outcome was recorded.
GRADE = """
if [ -d /r2e_tests ]; then mv /r2e_tests /root/r2e_tests
elif [ -d r2e_tests ] && [ ! -L r2e_tests ]; then mv r2e_tests /root/r2e_tests; fi
[ ! -d /root/r2e_tests ] || ln -sfn /root/r2e_tests r2e_tests
mv run_tests.sh /root/run_tests.sh
bash /root/run_tests.sh
""".strip()


def read(path: Path) -> list[Task]:
    """All rows of a dataset. Raises TaskError naming file, row and field."""
    return [task(row) for row in read_rows(path)]


def task(row: Row) -> Task:
    """One row: `repo_name, docker_image, commit_hash, problem_statement, expected_output_json` and,
    for the gold patch, `parsed_commit_content`."""
    repo = row.text("repo_name")
    workdir = _WORKDIRS.get(repo, "/testbed")
    statement = row.text("problem_statement")
    issue = _ISSUE.search(statement)
    expected = row.mapping("expected_output_json")
    if not expected or not all(isinstance(status, str) for status in expected.values()):
        raise row.error("expected_output_json", "is no map from test name to status")
    return Task(
        id=f"{SOURCE}:{repo}-{row.text('commit_hash')}",
        source=SOURCE,
        image=row.text("docker_image"),
        prompt=(issue.group(1) if issue else statement).strip(),
        workdir=workdir,
        setup=SETUP,
        hidden=("/r2e_tests", f"{workdir}/r2e_tests", f"{workdir}/run_tests.sh"),
        grade=ExactGrade(script=GRADE, expected=expected),
        gold_patch=_gold_patch(row),
        env={"PATH": _PATH},
    )


def _gold_patch(row: Row) -> str:
    """What the commit changed outside the tests."""
    field = "parsed_commit_content"
    changes = row.mapping(field).get("file_diffs")
    if not isinstance(changes, list):
        raise row.error(field, "has no list file_diffs")
    try:
        return "".join(_file_patch(change) for change in changes)
    except (KeyError, TypeError) as error:
        raise row.error(field, f"has a file_diff without {error}") from error


def _file_patch(change: dict[str, Any]) -> str:
    path = change["header"]["file"]["path"]
    if is_test_file(path) or change.get("is_binary_file"):
        return ""
    return file_diff(
        path,
        None if _absent(change.get("minus_file")) else change["old_file_content"],
        None if _absent(change.get("plus_file")) else change["new_file_content"],
    )


def _absent(side: dict[str, Any] | None) -> bool:
    return side is not None and side["path"] == "/dev/null"


def is_test_file(path: str) -> bool:
    """R2E-Gym's rule for files whose changes are tests, not the fix."""
    *folders, name = path.split("/")
    in_tests = not {"tests", "Tests", "test", "Test"}.isdisjoint(folders)
    return in_tests or name.startswith("test_") or name.endswith("_test.py")
