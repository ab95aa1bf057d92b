"""R2E-Gym, SWE-Gym and SWE-bench rows in their published schemas."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
from skiff.errors import TaskError
from skiff.tasks import r2e, swebench
from skiff.tasks.rows import Row
from skiff.tasks.task import ExactGrade, PassGrade, ScriptGrade


def change(path: str, old: str | None, new: str | None) -> dict[str, Any]:
    return {
        "header": {"file": {"path": path}, "misc_line": None},
        "is_binary_file": False,
        "minus_file": {"path": "/dev/null" if old is None else path},
        "plus_file": {"path": "/dev/null" if new is None else path},
        "old_file_content": old or "",
        "new_file_content": new or "",
        "hunks": [],
    }


R2E = {
    "repo_name": "pandas",
    "docker_image": "namanjain12/pandas_final:abc",
    "commit_hash": "abc",
    "parsed_commit_content": json.dumps(
        {
            "file_diffs": [
                change("pandas/core.py", "a = 1\n", "a = 2\n"),
                change("pandas/new.py", None, "b = 1\n"),
                change("pandas/tests/test_core.py", "x\n", "y\n"),
                change("test_top.py", "x\n", "y\n"),
            ],
            "old_commit_hash": "abb",
            "new_commit_hash": "abc",
        }
    ),
    "problem_statement": "Intro [ISSUE]\n**Title** it is 1\n[/ISSUE]",
    "expected_output_json": json.dumps({"TestA.test_b": "PASSED"}),
}

SWE = {
    "instance_id": "Astropy__astropy-1",
    "repo": "astropy/astropy",
    "problem_statement": "It breaks.\n",
    "patch": "diff --git a/a.py b/a.py\n--- a/a.py\n+++ b/a.py\n@@ -1 +1 @@\n-a\n+b\n",
    "test_patch": (
        "diff --git a/t/test_a.py b/t/test_a.py\n--- a/t/test_a.py\n+++ b/t/test_a.py\n"
        "@@ -1 +1 @@\n-a\n+b\n"
        "diff --git a/t/data.json b/t/data.json\n--- a/t/data.json\n+++ b/t/data.json\n"
        "@@ -1 +1 @@\n-a\n+b\n"
    ),
    "FAIL_TO_PASS": '["t/test_a.py::test_one"]',
    "PASS_TO_PASS": ["t/test_a.py::test_two"],
}


def row(values: dict[str, Any], **changes: Any) -> Row:
    return Row(Path("rows.parquet"), 3, values | changes)


def test_an_r2e_row() -> None:
    task = r2e.task(row(R2E))
    assert task.id == "r2e:pandas-abc"
    assert task.image == "namanjain12/pandas_final:abc"
    assert task.workdir == "/testbed"
    assert task.prompt == "**Title** it is 1"
    assert task.grade == ExactGrade(script=task.grade.script, expected={"TestA.test_b": "PASSED"})
    assert {"/r2e_tests", "/testbed/run_tests.sh", "/testbed/r2e_tests"} <= set(task.hidden)
    assert task.env["PATH"].startswith("/root/.venv/bin:/root/.local/bin:")


def test_the_r2e_gold_patch_leaves_the_tests_out() -> None:
    patch = r2e.task(row(R2E)).gold_patch
    assert "b/pandas/core.py" in patch
    assert "--- /dev/null\n+++ b/pandas/new.py" in patch
    assert "test_" not in patch


def test_sympy_lives_elsewhere() -> None:
    task = r2e.task(row(R2E, repo_name="sympy"))
    assert task.workdir == "/sympy"
    assert "/sympy/run_tests.sh" in task.hidden


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"docker_image": None}, "docker_image is missing"),
        ({"expected_output_json": "{"}, "expected_output_json is no JSON"),
        ({"expected_output_json": "{}"}, "expected_output_json is no map"),
        ({"parsed_commit_content": "{}"}, "parsed_commit_content has no list file_diffs"),
        ({"parsed_commit_content": '{"file_diffs": [{}]}'}, "a file_diff without 'header'"),
    ],
)
def test_a_bad_r2e_row(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError, match=r"rows\.parquet, row 3: .*" + complaint):
        r2e.task(row(R2E, **changes))


@pytest.mark.parametrize(
    ("path", "is_test"),
    [
        ("a/b.py", False), ("a/tests/b.py", True), ("Tests/x.c", True), ("test/x", True),
        ("a/test_b.py", True), ("a/b_test.py", True), ("a/testing.py", False),
    ],
)  # fmt: skip
def test_r2e_test_files(path: str, is_test: bool) -> None:
    assert r2e.is_test_file(path) is is_test


def test_image_names() -> None:
    name = swebench.image_name("Astropy__astropy-1", "swebench")
    assert name == "swebench/sweb.eval.x86_64.astropy_1776_astropy-1:latest"
    name = swebench.image_name("Project-MONAI__MONAI-1", "swegym")
    assert name == "xingyaoww/sweb.eval.x86_64.project-monai_s_monai-1:latest"


def test_a_swebench_row() -> None:
    task = swebench.task(row(SWE), "swebench")
    assert isinstance(task.grade, PassGrade)
    assert task.grade.fail_to_pass == ("t/test_a.py::test_one",)
    assert task.grade.pass_to_pass == ("t/test_a.py::test_two",)
    assert task.grade.test_patch == SWE["test_patch"]
    assert task.grade.script.endswith(" t/test_a.py")
    assert "activate testbed" in task.grade.script
    assert task.gold_patch == SWE["patch"]
    assert task.id == "swebench:Astropy__astropy-1"


def test_an_eval_script_goes_first() -> None:
    task = swebench.task(row(SWE, eval_script="#!/bin/bash\npytest x\n"), "swegym")
    assert task.grade == ScriptGrade(script="#!/bin/bash\npytest x\n")
    assert task.source == "swegym"


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"FAIL_TO_PASS": None}, "FAIL_TO_PASS is missing"),
        ({"PASS_TO_PASS": "x"}, "PASS_TO_PASS is no JSON"),
        ({"test_patch": ""}, "test_patch touches no Python file"),
        ({"patch": 3}, "patch is no text"),
    ],
)
def test_a_bad_swebench_row(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(TaskError, match=rf"rows\.parquet, row 3: {complaint}"):
        swebench.task(row(SWE, **changes), "swebench")


def test_other_test_runners_are_left_out_aloud(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    django = SWE | {"repo": "django/django", "instance_id": "django__django-1"}
    scripted = django | {"instance_id": "django__django-2", "eval_script": "true"}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(values) + "\n" for values in (SWE, django, scripted)))
    with caplog.at_level(logging.WARNING):
        tasks = swebench.read(path, "swebench")
    assert [task.id for task in tasks] == [
        "swebench:Astropy__astropy-1",
        "swebench:django__django-2",
    ]
    assert "1 of 3 rows left out" in caplog.text
