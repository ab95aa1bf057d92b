"""`skiff list`, and how far a run is, from run folders alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import cli
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.launch import run_folder, submit
from skiff.launch.listing import runs_below
from skiff.launch.progress import read_progress
from skiff.launch.sbatch import Shape

Make = Callable[[str], Path]


@pytest.fixture
def make(runtime_config: Callable[..., Config], tmp_path: Path) -> Make:
    """`make(name)`: a run folder of 20 steps below tmp_path/runs."""

    def call(name: str) -> Path:
        config = runtime_config(
            run={"name": name, "folder": str(tmp_path / "runs")}, train={"steps": 20}
        )
        return run_folder.make(config)

    return call


def emit(run_dir: Path, time: float, kind: str, **fields: Any) -> None:
    """An event at a time of the test's choice."""
    with (run_dir / "events.jsonl").open("a") as file:
        file.write(json.dumps({"time": time, "kind": kind, **fields}) + "\n")


def step(run_dir: Path, time: float, number: int, seconds: float) -> None:
    emit(run_dir, time, "step", step=number, seconds={"step": seconds}, metrics={})


def test_time_left_is_the_median_step_times_those_left(make: Make) -> None:
    run = make("a")
    for number, seconds in ((1, 500.0), (2, 10.0), (3, 12.0), (4, 11.0), (5, 11.0)):
        step(run, 1000.0 + number, number, seconds)
    assert read_progress(run, now=1005.0).eta_seconds == 15 * 11.0
    assert read_progress(run, now=1009.0).eta_seconds == 15 * 11.0 - 4
    # A step that takes longer than usual: no less than what comes after it.
    assert read_progress(run, now=1905.0).eta_seconds == 14 * 11.0


def test_a_step_that_was_done_twice_counts_once(make: Make) -> None:
    run = make("a")
    for time, number in ((10, 1), (20, 2), (30, 3), (40, 2), (50, 3)):
        step(run, time, number, 10.0)
    assert read_progress(run, now=50).eta_seconds == 17 * 10.0


@pytest.mark.parametrize(
    ("code", "state", "error"),
    [
        (0, "done", ""),
        (130, "paused", "late"),
        (75, "paused", "late"),
        (3, "failed (3)", "disk is full"),
    ],
)
def test_how_a_run_ended(make: Make, code: int, state: str, error: str) -> None:
    run = make("a")
    step(run, 1, 1, 10.0)
    emit(run, 2, "error", what="late")
    emit(run, 3, "finished", exit_code=code, reason="disk is full")
    found = read_progress(run, now=4)
    assert (found.state, found.eta_seconds, found.error) == (state, None, error)


@pytest.mark.parametrize("name", ["runtime", "serve"])
def test_a_cancelled_run_says_so_until_it_begins_again(make: Make, name: str) -> None:
    run = make("a")
    emit(run, 1, "cancelled", job="7")  # it waited in the queue
    assert read_progress(run, now=2).state == "cancelled"
    emit(run, 3, "phase_begin", name=name)
    step(run, 4, 1, 10.0)
    assert read_progress(run, now=4).state == "running"
    emit(run, 5, "cancelled", job="8")
    assert read_progress(run, now=5).state == "cancelled"
    assert read_progress(run, now=5).eta_seconds is None
    emit(run, 6, "finished", exit_code=130, reason="interrupted")
    assert read_progress(run, now=6).state == "cancelled"
    emit(run, 7, "finished", exit_code=3, reason="disk is full")
    assert read_progress(run, now=7).state == "failed (3)"


def test_an_error_of_the_other_half_comes_after_the_end(make: Make) -> None:
    run = make("a")
    emit(run, 1, "finished", exit_code=3, reason="disk is full")
    emit(run, 2, "error", what="sandboxes may be left")
    found = read_progress(run, now=3)
    assert (found.state, found.error) == ("failed (3)", "disk is full")


def test_a_new_run_has_no_time_left(make: Make) -> None:
    found = read_progress(make("a"))
    assert (found.state, found.step, found.steps, found.eta_seconds) == ("new", 0, 20, None)


def test_the_newest_run_is_first(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = make("old"), make("new")
    step(old, 1000, 1, 10.0)
    step(new, 2000, 1, 10.0)
    run_folder.new_attempt(new)
    submit.note_jobs(new / "attempts" / "01", {Shape.HET: "77"})
    (tmp_path / "runs" / "no-run").mkdir()
    rows = runs_below(tmp_path / "runs")
    assert [(row.path, row.jobs) for row in rows] == [(str(new), ["77"]), (str(old), [])]
    assert cli.main(["list", str(tmp_path / "runs"), "--json"]) == 0
    assert [row["progress"]["step"] for row in json.loads(capsys.readouterr().out)] == [1, 1]


def test_runs_of_a_folder_of_folders(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make("deep")
    emit(run, 1000, "error", what="[/x] is gone\n  -> wait")
    monkeypatch.setenv("COLUMNS", "200")
    assert cli.main(["list", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "running, quiet for" in shown
    assert "[/x] is gone" in shown
    assert "0/20" in shown


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such folder"):
        runs_below(tmp_path / "gone")
