"""A resumed run starts from a checkpoint that is whole."""

from __future__ import annotations

from pathlib import Path

import pytest
from skiff import events
from skiff.errors import InfraError
from skiff.train import manifest
from skiff.train.manifest import write_manifest
from skiff.train.resume import TRACKER, complete_steps, newest, retire, saved_steps, settle


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "ckpt"
    path.mkdir()
    return path


def save(folder: Path, step: int, *, published: bool = True) -> Path:
    checkpoint = folder / f"global_step_{step}"
    (checkpoint / "actor").mkdir(parents=True)
    (checkpoint / "actor" / "model.pt").write_text(f"weights of {step}")
    if published:
        write_manifest(checkpoint)
    return checkpoint


def skipped(run_dir: Path) -> dict[int, str]:
    return {event["step"]: event["what"] for event in events.read(run_dir, "checkpoint_skipped")}


def test_without_a_checkpoint_it_starts_anew(tmp_path: Path) -> None:
    assert settle(tmp_path) == 0
    (tmp_path / "ckpt").mkdir()
    assert settle(tmp_path) == 0
    assert not (tmp_path / "ckpt" / TRACKER).exists()


def test_the_newest_by_number_is_taken(tmp_path: Path, folder: Path) -> None:
    for step in (5, 10, 9):
        save(folder, step)
    assert complete_steps(folder) == [5, 9, 10]
    assert settle(tmp_path) == newest(tmp_path) == 10
    assert (folder / TRACKER).read_text() == "10"
    assert skipped(tmp_path) == {}


@pytest.mark.parametrize("tracker", ["", "6", "garbage"])
def test_a_torn_checkpoint_is_passed_over(tmp_path: Path, folder: Path, tracker: str) -> None:
    save(folder, 3)
    torn = save(folder, 6, published=False)
    (folder / TRACKER).write_text(tracker)
    assert settle(tmp_path) == 3
    assert (folder / TRACKER).read_text() == "3"
    assert skipped(tmp_path) == {
        6: "the checkpoint of step 6 is not used: it was not saved to its end"
    }
    assert not torn.exists()


def test_only_a_torn_checkpoint_is_none(tmp_path: Path, folder: Path) -> None:
    save(folder, 3, published=False)
    (folder / TRACKER).write_text("3")
    assert settle(tmp_path) == 0
    assert not (folder / TRACKER).exists()


def test_a_damaged_checkpoint_is_kept_but_not_used(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for step in (2, 4):
        save(folder, step)
    for _ in range(2):  # it may be saved anew and be damaged anew
        (save(folder, 6) / "actor" / "model.pt").write_text("weights of 7")
        assert settle(tmp_path) == 4
    said = (
        "the checkpoint of step 6 is not used: actor/model.pt has another SHA-256 than when it was"
        " saved"
    )
    assert f"{said}\n" in capsys.readouterr().out
    assert skipped(tmp_path) == {6: said}
    assert complete_steps(folder) == [2, 4]
    assert (folder / "damaged_global_step_6").is_dir()


def test_what_was_left_of_a_removal_is_removed(tmp_path: Path, folder: Path) -> None:
    left = save(folder, 2, published=False)
    save(folder, 4)
    assert settle(tmp_path) == 4
    assert not left.exists()


def test_a_checkpoint_that_cannot_be_read_is_not_set_aside(
    tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 2)

    def fail(*_: object) -> str:
        raise OSError(116, "Stale file handle")

    monkeypatch.setattr(manifest, "fault", fail)
    with pytest.raises(InfraError, match="Stale file handle"):
        settle(tmp_path)
    assert complete_steps(folder) == [2]


def test_other_files_are_no_checkpoints(folder: Path) -> None:
    for name in ("global_step_x", "global_step_7.tmp", "old_global_step_8"):
        (folder / name / "actor").mkdir(parents=True)
        write_manifest(folder / name)
    assert complete_steps(folder) == []


def test_verl_finds_what_settle_names(tmp_path: Path, folder: Path) -> None:
    from verl.utils.checkpoint.checkpoint_manager import find_latest_ckpt_path

    save(folder, 3)
    save(folder, 6, published=False)
    settle(tmp_path)
    assert find_latest_ckpt_path(str(folder)) == str(folder / "global_step_3")


def test_the_newest_complete_ones_are_kept(folder: Path) -> None:
    for step in (1, 3, 4):
        save(folder, step)
    for step in (2, 5):
        save(folder, step, published=False)
    retire(folder, 4)
    assert saved_steps(folder) == [1, 3, 4, 5]  # nobody will publish 2 any more
    retire(folder, 2)
    assert saved_steps(folder) == [3, 4, 5]
