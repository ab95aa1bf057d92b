"""Verdicts on test output: R2E-Gym's exact dictionary, SWE-bench's lists, an exit status."""

import pytest
from skiff.tasks.task import ExactGrade, PassGrade, ScriptGrade
from skiff.tasks.verdict import exact, judge, parse_log, parse_summary, passes

SUMMARY = """\
collected 4 items
PASSED in the middle of the log, before the summary::not_a_test
=========================== short test summary info ============================
\x1b[32mPASSED\x1b[0m r2e_tests/test_1.py::\x1b[1mTestA::test_one\x1b[0m
PASSED r2e_tests/test_1.py::test_two[a - b]
FAILED r2e_tests/test_1.py::test_three - AssertionError: assert 1 == 2
ERROR r2e_tests/test_2.py - ImportError: no module named x
SKIPPED [1] r2e_tests/test_1.py:7: not here
==================== 1 failed, 2 passed, 1 error in 0.10s ======================
"""


def test_summary_names_are_upstreams() -> None:
    assert parse_summary(SUMMARY) == {
        "TestA.test_one": "PASSED",
        "test_two[a": "PASSED",
        "test_three": "FAILED",
        "": "ERROR",
    }


def test_without_a_summary_there_is_no_result() -> None:
    assert parse_summary("Segmentation fault\nPASSED a::b\n") == {}


def test_exact_wants_the_same_dictionary() -> None:
    found = {"a": "PASSED", "b": "FAILED"}
    assert exact(found, {"a": "PASSED", "b": "FAILED"}).reward == 1.0
    assert exact(found, {"a": "PASSED", "b": "PASSED"}).reward == 0.0
    assert exact(found, {"a": "PASSED"}).reward == 0.0
    assert exact(found, {"a": "PASSED", "c": "FAILED"}).reward == 0.0


def test_exact_skips_the_nameless_entry_but_counts_it() -> None:
    assert exact({"a": "PASSED", "": "ERROR"}, {"a": "PASSED", "": "PASSED"}).reward == 1.0
    assert exact({"a": "PASSED", "": "ERROR"}, {"a": "PASSED"}).reward == 0.0


def test_exact_reads_expected_names_as_loosely_as_upstream() -> None:
    expected = {"\x1b[1ma\x1b[0m": "PASSED", "b - AssertionError": "FAILED"}
    assert exact({"a": "PASSED", "b": "FAILED"}, expected).reward == 1.0


def test_nothing_expected_and_nothing_run_is_no_success() -> None:
    assert exact({}, {}).reward == 0.0


LOG = """\
tests/test_a.py::test_one PASSED
=========================== short test summary info ============================
PASSED tests/test_a.py::test_one
PASSED tests/test_a.py::test_blank[a b]
XFAIL tests/test_a.py::test_known - bug 7
FAILED tests/test_a.py::test_two - AssertionError: assert 1 == 2
ERROR tests/test_b.py
"""


def test_log_lines_begin_with_a_status() -> None:
    assert parse_log(LOG) == {
        "tests/test_a.py::test_one": "PASSED",
        "tests/test_a.py::test_blank[a": "PASSED",
        "tests/test_a.py::test_known": "XFAIL",
        "tests/test_a.py::test_two": "FAILED",
        "tests/test_b.py": "ERROR",
    }


@pytest.mark.parametrize(
    ("fail_to_pass", "pass_to_pass", "reward"),
    [
        (("tests/test_a.py::test_one",), (), 1.0),
        (("tests/test_a.py::test_one",), ("tests/test_a.py::test_known",), 1.0),
        (("tests/test_a.py::test_blank[a b]",), (), 1.0),
        (("tests/test_a.py::test_one",), ("tests/test_a.py::test_two",), 0.0),
        (("tests/test_a.py::test_two",), (), 0.0),
        (("tests/test_a.py::test_never_ran",), (), 0.0),
    ],
)
def test_passes(
    fail_to_pass: tuple[str, ...], pass_to_pass: tuple[str, ...], reward: float
) -> None:
    grade = PassGrade(script="", fail_to_pass=fail_to_pass, pass_to_pass=pass_to_pass)
    assert passes(parse_log(LOG), grade).reward == reward


def test_judge_goes_by_kind() -> None:
    assert judge(ScriptGrade(script=""), 0, "FAILED").reward == 1.0
    assert judge(ScriptGrade(script=""), 1, "ok").reward == 0.0
    # pytest's exit status is 1 here; only the dictionary counts.
    expected = {"TestA.test_one": "PASSED", "test_two[a": "PASSED", "test_three": "FAILED"}
    assert judge(ExactGrade(script="", expected=expected | {"": "x"}), 1, SUMMARY).reward == 1.0
    grade = PassGrade(script="", fail_to_pass=("tests/test_a.py::test_one",))
    assert judge(grade, 1, LOG).reward == 1.0
