from collections.abc import Callable
from pathlib import Path

from skiff.report.records import read_records
from skiff.report.summary import summarise


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


def test_trajectories_of_a_step_that_was_done_again_count_once(
    tmp_path: Path, emit: Callable[..., None]
) -> None:
    """Killed in step 2, and gone on with from the checkpoint of step 1."""
    emit("phase_begin", 1, name="runtime")
    emit("trajectory", 2, step=1, task="a", reward=1.0)
    emit("step", 3, step=1, seconds={"step": 1.0})
    emit("trajectory", 4, step=2, task="lost", reward=0.0)
    emit("trajectory", 5, step=2, task="lost too", reward=None)
    emit("phase_begin", 6, name="runtime")
    emit("trajectory", 7, step=2, task="b", reward=1.0)
    emit("step", 8, step=2, seconds={"step": 1.0})
    records = read_records(tmp_path)
    assert [record.task for record in records.trajectories] == ["a", "b"]
    assert summarise(tmp_path).masked == 0
    assert summarise(tmp_path).trajectories_per_minute == 60.0


def test_a_start_that_gets_nowhere_takes_nothing_away(
    tmp_path: Path, emit: Callable[..., None]
) -> None:
    emit("phase_begin", 1, name="runtime")
    emit("trajectory", 2, step=1, task="a", reward=1.0)
    emit("trajectory", 3, step=1, split="validation", task="v", reward=1.0)
    emit("phase_begin", 4, name="runtime")
    emit("trajectory", 5, step=1, split="validation", task="v", reward=0.0)
    kept = [(record.task, record.reward) for record in read_records(tmp_path).trajectories]
    assert kept == [("a", 1.0), ("v", 0.0)]


def test_a_look_at_gpus_after_the_end_does_not_undo_it(
    tmp_path: Path, emit: Callable[..., None]
) -> None:
    emit("finished", 1, exit_code=0, reason="done")
    emit("gpu", 2, used_mib=[1], total_mib=[2], busy=[3])
    emit("alert", 3, what="GPU 0 is at 91 °C")
    finished = read_records(tmp_path).finished
    assert finished is not None
    assert finished.exit_code == 0
    emit("phase_begin", 4, name="runtime")
    assert read_records(tmp_path).finished is None
