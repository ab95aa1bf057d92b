"""From the output of a test run to a reward: the three verdicts of `Task.grade`.

`exact` reads pytest's short summary as R2E-Gym does, `passes` reads `pytest -rA` lines as SWE-bench
does; both read names the way those datasets wrote them down, oddities included.
Not covered: logs of other runners (unittest, Django's runtests, sympy's bin/test).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from skiff.tasks.task import ExactGrade, PassGrade, ScriptGrade

_ANSI = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|\[\d+m")
_SUMMARY = "short test summary info"
_STATUSES = ("PASSED", "FAILED", "ERROR")
_LOG_STATUSES = (*_STATUSES, "SKIPPED", "XFAIL", "XPASS")
_PASSING = ("PASSED", "XFAIL")


@dataclass(frozen=True)
class Verdict:
    """`reward` 0.0 or 1.0, and one sentence on why."""

    reward: float
    detail: str


def judge(grade: ScriptGrade | ExactGrade | PassGrade, exit_code: int, output: str) -> Verdict:
    """The verdict on a test run that ended by itself; `output` is stdout and stderr together."""
    if isinstance(grade, ScriptGrade):
        return Verdict(float(exit_code == 0), f"exit {exit_code}")
    if isinstance(grade, ExactGrade):
        return exact(parse_summary(output), grade.expected)
    return passes(parse_log(output), grade)


def parse_summary(output: str) -> dict[str, str]:
    """R2E-Gym: test name -> PASSED, FAILED or ERROR, from pytest's short summary.

    The name is what follows the file, '::' turned into '.', cut at ' - '. A file that could not
    be collected has the empty name. Without a summary the result is empty.
    """
    plain = _ANSI.sub("", output)
    if _SUMMARY not in plain:
        return {}
    statuses: dict[str, str] = {}
    for line in plain.split(_SUMMARY)[1].splitlines():
        status = next((word for word in _STATUSES if word in line), None)
        if status is not None:
            statuses[_summary_name(".".join(line.split("::")[1:]))] = status
    return statuses


def exact(found: Mapping[str, str], expected: Mapping[str, str]) -> Verdict:
    """R2E-Gym: as many tests as expected, and each with the expected status. No partial credit."""
    wanted = {_summary_name(_ANSI.sub("", name)): status for name, status in expected.items()}
    if not found:
        return Verdict(0.0, "the tests left no summary")
    if len(found) != len(wanted):
        return Verdict(0.0, f"{len(found)} tests ran, {len(wanted)} expected")
    for name, status in found.items():
        if name and wanted.get(name) != status:
            return Verdict(0.0, f"{name}: {status}, expected {wanted.get(name, 'no such test')}")
    return Verdict(1.0, f"all {len(wanted)} tests as expected")


def parse_log(output: str) -> dict[str, str]:
    """SWE-bench: test id -> status, from the lines that `pytest -rA` begins with a status.

    The id ends at the first blank, as in the published FAIL_TO_PASS and PASS_TO_PASS lists.
    """
    statuses: dict[str, str] = {}
    for line in _ANSI.sub("", output).splitlines():
        words = line.split()
        if len(words) > 1 and words[0] in _LOG_STATUSES:
            statuses[words[1]] = words[0]
    return statuses


def passes(found: Mapping[str, str], grade: PassGrade) -> Verdict:
    """SWE-bench: every FAIL_TO_PASS and PASS_TO_PASS test passed ("resolved, full")."""
    wanted = (*grade.fail_to_pass, *grade.pass_to_pass)
    missed = [name for name in wanted if found.get(_log_name(name)) not in _PASSING]
    if not missed:
        return Verdict(1.0, f"all {len(wanted)} tests pass")
    first = missed[0]
    status = found.get(_log_name(first), "did not run")
    return Verdict(0.0, f"{len(missed)} of {len(wanted)} tests do not pass; {first}: {status}")


def _summary_name(name: str) -> str:
    return name.split(" - ")[0]


def _log_name(name: str) -> str:
    return name.split()[0] if name.split() else name
