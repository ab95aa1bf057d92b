"""A resumed run starts from a checkpoint that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from skiff import events
from skiff.train.checkpoint import PublishCheckpoint
from skiff.train.resume import MARKER, TRACKER, complete_steps, settle


def save(folder: Path, step: int, *, marked: bool = True) -> Path:
    checkpoint = folder / f"global_step_{step}"
    (checkpoint / "actor").mkdir(parents=True)
    if marked:
        (checkpoint / MARKER).write_text(f"{step}\n")
    return checkpoint


def test_without_a_checkpoint_it_starts_anew(tmp_path: Path) -> None:
    assert settle(tmp_path) == 0
    assert not (tmp_path / TRACKER).exists()
    assert settle(tmp_path / "absent") == 0


def test_the_newest_by_number_is_taken(tmp_path: Path) -> None:
    for step in (5, 10, 9):
        save(tmp_path, step)
    assert complete_steps(tmp_path) == [5, 9, 10]
    assert settle(tmp_path) == 10
    assert (tmp_path / TRACKER).read_text() == "10"


@pytest.mark.parametrize("tracker", ["", "6", "garbage"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, tracker: str) -> None:
    save(tmp_path, 3)
    save(tmp_path, 6, marked=False)
    (tmp_path / TRACKER).write_text(tracker)
    assert settle(tmp_path) == 3
    assert (tmp_path / TRACKER).read_text() == "3"


def test_only_a_torn_checkpoint_is_none(tmp_path: Path) -> None:
    save(tmp_path, 3, marked=False)
    (tmp_path / TRACKER).write_text("3")
    assert settle(tmp_path) == 0
    assert not (tmp_path / TRACKER).exists()


def test_a_checkpoint_whose_weights_were_removed_is_none(tmp_path: Path) -> None:
    save(tmp_path, 2)
    (save(tmp_path, 4) / "actor").rmdir()
    assert settle(tmp_path) == 2


def test_other_files_are_no_checkpoints(tmp_path: Path) -> None:
    for name in ("global_step_x", "global_step_7.tmp", "old_global_step_8"):
        (tmp_path / name / "actor").mkdir(parents=True)
        (tmp_path / name / MARKER).touch()
    assert complete_steps(tmp_path) == []


def test_verl_finds_what_settle_names(tmp_path: Path) -> None:
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    save(tmp_path, 3)
    save(tmp_path, 6, marked=False)
    settle(tmp_path)
    assert find_latest_ckpt_path(str(tmp_path)) == str(tmp_path / "global_step_3")


def test_the_callback_marks_and_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIFF_RUN", str(tmp_path))
    folder = save(tmp_path / "ckpt", 4, marked=False)
    PublishCheckpoint().on_save(None, 4, str(folder), async_save=False)
    assert complete_steps(tmp_path / "ckpt") == [4]
    (event,) = events.read(tmp_path, "checkpoint")
    assert (event["step"], event["path"]) == (4, str(folder))
