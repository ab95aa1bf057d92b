"""`skiff tasks build`: from a package on the index to an image and tasks, in the three shapes.

The r2e and swebench shapes are real images and rows in the published schemas, made from one bug
each, so that the readers and verdicts of those datasets run where the datasets can't be had.
Not covered: issue texts written by people.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
from rich.progress import Progress

from skiff.config.schema import Config
from skiff.errors import InfraError, TaskError
from skiff.files import write_atomic
from skiff.images.package import History, build_r2e_image, build_swebench_image, ensure_plain_image
from skiff.images.sandbox import PYTHON, ensure_sandbox_image
from skiff.sandbox.client import RuntimeClient, SandboxSpec
from skiff.tasks import r2e, swebench
from skiff.tasks.diffs import file_diff
from skiff.tasks.package import Package, fetch
from skiff.tasks.rows import Row
from skiff.tasks.store import skiff_home, synthetic_path, write_tasks
from skiff.tasks.synthetic import Bug, find_bugs, to_task
from skiff.tasks.task import Task
from skiff.tasks.verdict import parse_summary

_PATCH = "/var/tmp/skiff.patch"
_LOG = "/var/tmp/skiff-tests.log"


async def build_synthetic(
    requirement: str,
    client: RuntimeClient,
    config: Config,
    *,
    count: int,
    seed: int,
    progress: Progress,
    extra: Sequence[str] = (),
) -> tuple[Path, list[Task]]:
    """Make up to `count` tasks from `name` or `name==version` and write them below $SKIFF_HOME.

    `extra` are further requirements of the package's tests. Raises TaskError when no mutant is
    noticed by the tests.
    """
    package = fetch(requirement, python=PYTHON, extra=extra)
    image, bugs = await _bugs(package, client, config, count, seed, progress)
    tasks = [
        to_task(bug, package, image, number=number, seed=seed) for number, bug in enumerate(bugs)
    ]
    path = synthetic_path(package.name, package.version)
    write_tasks(path, tasks)
    return path, tasks


async def build_r2e_shaped(
    requirement: str,
    client: RuntimeClient,
    config: Config,
    *,
    seed: int,
    progress: Progress,
    extra: Sequence[str] = (),
) -> Path:
    """Make an R2E-Gym-shaped image and a parquet file with its row; return the file."""
    package = fetch(requirement, python=PYTHON, extra=extra)
    _, bugs = await _bugs(package, client, config, 1, seed, progress)
    image = f"localhost/skiff/r2e/{package.name}_final:{package.version}"
    history = build_r2e_image(package, bugs[0].mutation, image)
    row = _r2e_row(package, bugs[0], history, image)
    expected = await _expected(row, client, config)
    row["expected_output_json"] = json.dumps(expected)
    return _write_parquet("r2e", package, row)


async def build_swebench_shaped(
    requirement: str,
    client: RuntimeClient,
    config: Config,
    *,
    seed: int,
    progress: Progress,
    extra: Sequence[str] = (),
) -> Path:
    """Make a SWE-bench-shaped image and a parquet file with its row; return the file."""
    package = fetch(requirement, python=PYTHON, extra=extra)
    _, bugs = await _bugs(package, client, config, 1, seed, progress)
    bug = bugs[0]
    unseen = Counter(name.split("::")[0] for name in bug.failing).most_common(1)[0][0]
    instance = f"skiff__{package.name}-{seed}"
    name = swebench.image_name(instance, "swebench")
    history = build_swebench_image(package, bug.mutation, f"localhost/{name}", unseen=[unseen])
    return _write_parquet(
        "swebench", package, _swebench_row(package, bug, history, instance, unseen)
    )


async def _bugs(
    package: Package,
    client: RuntimeClient,
    config: Config,
    count: int,
    seed: int,
    progress: Progress,
) -> tuple[str, list[Bug]]:
    ensure_sandbox_image()
    image = ensure_plain_image(package)
    bugs = await find_bugs(
        client, config, package, image, count=count, seed=seed, progress=progress
    )
    if not bugs:
        raise TaskError(
            "its tests notice none of the bugs that were put in",
            where=f"{package.name} {package.version}",
            remedy="take a package whose tests cover more of it",
        )
    return image, bugs


async def _expected(row: dict[str, Any], client: RuntimeClient, config: Config) -> dict[str, str]:
    """The outcome of the tests with the fix, as R2E-Gym records it: run and parsed."""
    task = r2e.task(Row(Path(row["docker_image"]), 1, row))
    spec = SandboxSpec.from_config(config, image=task.image, workdir=task.workdir, env=task.env)
    async with client.sandbox(spec) as sandbox:
        await sandbox.write(_PATCH, task.gold_patch.encode())
        steps = f"set -e\ngit apply {_PATCH}\n(\nset +e\n{task.setup}\n)\nset +e"
        command = f"{steps}\n(\n{task.grade.script}\n) > {_LOG} 2>&1\ntrue"
        done = await sandbox.run(command, timeout=config.agent.grade_seconds, cwd=task.workdir)
        if done.exit_code != 0:
            raise InfraError(f"the tests could not be run: {done.text}", where=task.image)
        return parse_summary((await sandbox.read(_LOG)).decode(errors="replace"))


def _r2e_row(package: Package, bug: Bug, history: History, image: str) -> dict[str, Any]:
    """All fields of R2E-Gym-Subset; what Skiff does not read is filled as far as it is known.

    `expected_output_json` names one test until the tests were run.
    """
    mutation = bug.mutation
    change: dict[str, Any] = {
        "header": {"file": {"path": mutation.path}, "misc_line": None},
        "index_line": None,
        "is_binary_file": False,
        "binary_line": None,
        "minus_file": {"path": mutation.path},
        "plus_file": {"path": mutation.path},
        "hunks": [],
        "old_file_content": mutation.mutated,
        "new_file_content": mutation.original,
    }
    commit = {
        "file_diffs": [change],
        "old_commit_hash": history.buggy,
        "new_commit_hash": history.fixed,
        "commit_message": "fix",
        "commit_date": "2025-01-01T00:00:00Z",
        "metadata": {},
    }
    statement = f"[ISSUE]\n{_statement(bug)}\n[/ISSUE]"
    return {
        "repo_name": package.name,
        "docker_image": image,
        "commit_hash": history.fixed,
        "parsed_commit_content": json.dumps(commit),
        "execution_result_content": json.dumps({"new_commit_hash": history.fixed}),
        "modified_files": [mutation.path],
        "modified_entity_summaries": [],
        "relevant_files": [mutation.path],
        "num_non_test_files": 1,
        "num_non_test_func_methods": 1,
        "num_non_test_lines": 1,
        "prompt": statement,
        "problem_statement": statement,
        "expected_output_json": json.dumps(dict.fromkeys(bug.failing, "PASSED")),
    }


def _swebench_row(
    package: Package, bug: Bug, history: History, instance: str, unseen: str
) -> dict[str, Any]:
    """All fields of SWE-bench Verified. The tests in the file `unseen` are the row's tests."""
    inside = f"{unseen}::"
    content = (package.root / unseen).read_text(encoding="utf-8")
    return {
        "repo": f"skiff/{package.name}",
        "instance_id": instance,
        "base_commit": history.buggy,
        "patch": bug.mutation.gold_patch,
        "test_patch": file_diff(unseen, None, content),
        "problem_statement": _statement(bug),
        "hints_text": "",
        "created_at": "2025-01-01T00:00:00Z",
        "version": package.version,
        "FAIL_TO_PASS": json.dumps([name for name in bug.failing if name.startswith(inside)]),
        "PASS_TO_PASS": json.dumps([name for name in bug.passing if name.startswith(inside)]),
        "environment_setup_commit": history.buggy,
        "difficulty": "<15 min fix",
    }


def _statement(bug: Bug) -> str:
    """The messages of the failing tests, since the tests themselves are hidden."""
    messages = dict.fromkeys(reason for reason in bug.failing.values() if reason)
    names = dict.fromkeys(name.split("::")[-1] for name in bug.failing)
    lines = [*(f"- {message}" for message in messages), "", f"Seen in: {', '.join(names)}"]
    return "\n".join(["Wrong results in some cases:", "", *lines])


def _write_parquet(shape: str, package: Package, row: dict[str, Any]) -> Path:
    path = skiff_home() / "tasks" / shape / f"{package.name}-{package.version}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), buffer)
    write_atomic(path, buffer.getvalue())
    return path
