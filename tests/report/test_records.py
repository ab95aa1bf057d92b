from collections.abc import Callable
from pathlib import Path

from skiff.report.records import read_records


def test_missing_events_give_empty_records(tmp_path: Path) -> None:
    records = read_records(tmp_path)
    assert records.steps == []
    assert records.finished is None
    assert records.first_time is None


def test_torn_last_line_is_left_out(run_dir: Path) -> None:
    whole = read_records(run_dir)
    with (run_dir / "events.jsonl").open("a") as events:
        events.write('{"time": 1060, "kind": "step", "st')
    assert read_records(run_dir) == whole


def test_wrong_types_are_counted_not_guessed(run_dir: Path, emit: Callable[..., None]) -> None:
    emit("step", 1060, step="three")
    emit("trajectory", 1060, step=3, reward="good")
    records = read_records(run_dir)
    assert records.unreadable == 2
    assert [step.step for step in records.steps] == [1, 2]


def test_unknown_kinds_only_move_the_clock(run_dir: Path, emit: Callable[..., None]) -> None:
    emit("something_new", 2000, value=1)
    records = read_records(run_dir)
    assert records.unreadable == 0
    assert records.last_time == 2000


def test_step_done_again_counts_once(run_dir: Path, emit: Callable[..., None]) -> None:
    emit("step", 1070, step=2, seconds={"step": 99.0}, metrics={"entropy": 0.25})
    emit("step", 1080, step=3, seconds={"step": 1.0})
    records = read_records(run_dir)
    assert [step.step for step in records.steps] == [1, 2, 3]
    assert records.steps[1].seconds == {"step": 99.0}


def test_a_resumed_run_is_not_finished(run_dir: Path, emit: Callable[..., None]) -> None:
    assert read_records(run_dir).finished is not None
    emit("step", 1070, step=3)
    assert read_records(run_dir).finished is None


def test_empty_metric_lists_vanish(tmp_path: Path, emit: Callable[..., None]) -> None:
    """Regression: a step without any update logs empty lists, whose mean does not exist."""
    emit(
        "step",
        1,
        step=1,
        metrics={"entropy": [], "grad_norm": [1.0, 3.0], "kl": float("nan"), "note": "x", "up": 2},
    )
    assert read_records(tmp_path).steps[0].metrics == {"grad_norm": 2.0, "up": 2.0}
