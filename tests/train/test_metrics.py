"""verl's metrics file becomes events, whatever verl puts into a line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from skiff import events
from skiff.report import summarise, write_report
from skiff.train.metrics import Follower, number, validation


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "verl.jsonl"


@pytest.fixture
def follower(tmp_path: Path, file: Path) -> Follower:
    return Follower(tmp_path, file)


def line(step: int, **data: Any) -> str:
    return json.dumps({"step": step, "data": data}) + "\n"


def append(file: Path, text: str) -> None:
    with file.open("a") as target:
        target.write(text)


def trajectory(run_dir: Path, task: str, reward: float | None, *, step: int = 0) -> None:
    events.emit(run_dir, "trajectory", split="validation", step=step, task=task, reward=reward)


def test_a_step_is_emitted_under_our_names(tmp_path: Path, file: Path, follower: Follower) -> None:
    follower.follow()  # no file yet
    data = {
        "timing_s/step": 2.00049,
        "timing_s/gen": 1,
        "critic/rewards/mean": 0.5,
        "training/masked_trajectories": 2,
        "actor/something_new": 1,
    }
    append(file, line(3, **data))
    follower.follow()
    follower.follow()
    (step,) = events.read(tmp_path, "step")
    assert step["step"] == 3
    assert step["seconds"] == {"step": 2.0, "gen": 1}
    assert step["metrics"] == {"reward_mean": 0.5, "masked": 2}


def test_a_torn_line_waits_for_its_rest(tmp_path: Path, file: Path, follower: Follower) -> None:
    whole = line(1, **{"timing_s/step": 1.0})
    append(file, whole[:20])
    follower.follow()
    assert list(events.read(tmp_path)) == []
    append(file, whole[20:] + line(2, **{"timing_s/step": 1.0})[:-1])
    follower.follow()
    assert [event["step"] for event in events.read(tmp_path)] == [1]


def test_a_line_that_is_no_record_is_left_out(
    tmp_path: Path, file: Path, follower: Follower
) -> None:
    append(file, "{torn\n\n[1]\n" + line(2, **{"timing_s/step": 1.0}))
    follower.follow()
    assert [event["step"] for event in events.read(tmp_path)] == [2]


# Trainers log empty lists and other odd values; neither our follower nor the report may fail.
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("n/a", None),
        ([], None),
        ({}, None),
        (float("nan"), None),
        (float("-inf"), None),
        ([1.0, None, 3.0], 2.0),
        (0, 0.0),
        (True, 1.0),
    ],
)
def test_odd_values_do_no_harm(
    tmp_path: Path, file: Path, follower: Follower, value: Any, expected: float | None
) -> None:
    assert number(value) == expected
    append(file, line(1))  # no metrics at all
    data = {"timing_s/step": 1.0, "timing_s/gen": value, "actor/entropy": value}
    append(file, line(2, **data))
    follower.follow()
    (step,) = events.read(tmp_path, "step")
    assert step["metrics"].get("entropy") == expected
    assert step["seconds"].get("gen") == expected
    assert write_report(tmp_path).stat().st_size > 0
    assert len(summarise(tmp_path).records.steps) == 1


def test_a_run_without_metrics_has_a_report(tmp_path: Path, file: Path) -> None:
    file.touch()
    Follower(tmp_path, file).follow()
    assert list(events.read(tmp_path)) == []
    assert write_report(tmp_path).stat().st_size > 0


def test_a_validation_is_counted_from_our_trajectories(
    tmp_path: Path, file: Path, follower: Follower
) -> None:
    for task, reward in (("a", 1.0), ("a", 0.0), ("b", None), ("c", 0.5)):
        trajectory(tmp_path, task, reward)
    trajectory(tmp_path, "d", 1.0, step=5)
    events.emit(tmp_path, "trajectory", split="train", step=0, task="e", reward=1.0)
    append(file, line(0, **{"val-core/shell/reward/mean@1": 0.5}))
    follower.follow()
    (found,) = events.read(tmp_path, "validation")
    counts = {"step": 0, "solved": 1, "graded": 3, "masked": 1}
    assert {name: found[name] for name in counts} == counts
    assert found["solve_rate"] == pytest.approx(1 / 3)


def test_a_repeated_validation_counts_once(tmp_path: Path, file: Path) -> None:
    trajectory(tmp_path, "a", 0.0)  # of an attempt that was killed during its validation
    follower = Follower(tmp_path, file)
    trajectory(tmp_path, "a", 1.0)
    trajectory(tmp_path, "b", 1.0)
    append(file, line(0, **{"val-core/shell/reward/mean@1": 1.0}))
    follower.follow()
    (found,) = events.read(tmp_path, "validation")
    assert (found["solved"], found["graded"]) == (2, 2)


def test_a_validation_that_lost_everything_has_no_rate(tmp_path: Path) -> None:
    trajectory(tmp_path, "a", None)
    found = validation(tmp_path, 0)
    assert (found["graded"], found["masked"], found["solve_rate"]) == (0, 1, None)
