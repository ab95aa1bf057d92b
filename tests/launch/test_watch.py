"""What a person sees of a run while it runs."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from skiff import events
from skiff.launch.watch import Watch

STEP = {
    "step": 3,
    "seconds": {"step": 10.0, "gen": 6.0, "update_actor": 3.0},
    "metrics": {"reward_mean": 0.25, "masked": 2.0},
}


@pytest.fixture
def output() -> io.StringIO:
    return io.StringIO()


@pytest.fixture
def console(output: io.StringIO) -> Console:
    return Console(file=output, width=200)


def seen(watch: Watch, output: io.StringIO) -> list[str]:
    start = output.tell()
    watch()
    output.seek(start)
    return output.read().splitlines()


def test_each_event_is_one_line(tmp_path: Path, console: Console, output: io.StringIO) -> None:
    with Watch(tmp_path, 20, console) as watch:
        assert seen(watch, output) == []
        events.emit(tmp_path, "phase", name="warm_start", seconds=12.34)
        events.emit(tmp_path, "phase", name="a new one", seconds=1.0)
        events.emit(tmp_path, "step", **STEP)
        events.emit(tmp_path, "validation", step=3, solved=3, graded=4, masked=1, solve_rate=0.75)
        events.emit(tmp_path, "checkpoint", step=3, path="x")
        assert seen(watch, output) == [
            "   12.3 s  warm start is done",
            "    1.0 s  a new one",
            "step    3/20  reward 0.250  10.0 s (rollout 6.0, update 3.0)  masked 2",
            "validation at step 3: 3 of 4 solved (75%, 1 masked)",
            "checkpoint of step 3",
        ]
        assert seen(watch, output) == []


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        ("progress", {"what": "x", "share": 0.5}),
        ("trajectory", {"split": "train", "step": 1}),
        ("phase_begin", {"name": "tasks"}),
        ("validation", {"step": 1, "solve_rate": None}),
        ("of a later version", {}),
    ],
)
def test_the_rest_is_for_a_terminal_only(
    tmp_path: Path, console: Console, output: io.StringIO, kind: str, fields: dict[str, Any]
) -> None:
    with Watch(tmp_path, 20, console) as watch:
        events.emit(tmp_path, kind, **fields)
        assert seen(watch, output) == []


def test_a_partial_line_waits(tmp_path: Path, console: Console, output: io.StringIO) -> None:
    with Watch(tmp_path, 20, console) as watch:
        file = tmp_path / events.FILE
        file.write_text('{"kind": "checkpoint", ')
        assert seen(watch, output) == []
        with file.open("a") as rest:
            rest.write('"step": 7}\n{torn\n')
        assert seen(watch, output) == ["checkpoint of step 7"]


def test_a_resumed_run_begins_where_it_was(
    tmp_path: Path, console: Console, output: io.StringIO
) -> None:
    events.emit(tmp_path, "checkpoint", step=1, path="x")
    with Watch(tmp_path, 20, console) as watch:
        assert seen(watch, output) == []
        events.emit(tmp_path, "checkpoint", step=2, path="x")
        assert seen(watch, output) == ["checkpoint of step 2"]


def test_brackets_are_text(tmp_path: Path, console: Console, output: io.StringIO) -> None:
    with Watch(tmp_path, 20, console) as watch:
        events.emit(tmp_path, "progress", what="[/x] half", share=0.5)
        events.emit(tmp_path, "error", what="file [/etc/x] is gone")
        events.emit(tmp_path, "alert", what="GPUs [0, 1]: idle")
        assert seen(watch, output) == ["file [/etc/x] is gone", "GPUs [0, 1]: idle"]


def test_a_step_without_metrics_is_shown(
    tmp_path: Path, console: Console, output: io.StringIO
) -> None:
    with Watch(tmp_path, 20, console) as watch:
        events.emit(tmp_path, "step", step=1, seconds={"step": 2.0}, metrics={})
        assert seen(watch, output) == [
            "step    1/20  reward 0.000  2.0 s (rollout 0.0, update 0.0)"
        ]


def test_a_terminal_has_a_live_line(tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=True)
    with Watch(tmp_path, 20, console) as watch:
        events.emit(tmp_path, "trajectory", split="train", step=4)
        watch()
    assert "step 4 of 20: 1 trajectories, 0 for validation" in output.getvalue()
