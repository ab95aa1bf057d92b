"""A trainer that is asked to save before its job's time limit. tests/slurm has Slurm ask."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.launch import half, local, run_folder
from skiff.launch.half import run_half
from skiff.train.manifest import write_manifest
from skiff.train.save_request import SAVED, request_file

Entrypoints = Callable[..., Path]


@pytest.fixture
def asked(
    runtime_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[int], Path]:
    """`asked(signal_seconds)`: the folder of a run with a checkpoint that is asked to save."""
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(half, "POLL_SECONDS", 0.02)
    return lambda seconds: make_run(runtime_config, tmp_path, seconds)


def make_run(runtime_config: Callable[..., Config], tmp_path: Path, seconds: int) -> Path:
    config = runtime_config(
        run={"folder": str(tmp_path / "asked")},
        runtime={"host": "0.0.0.0"},
        hardware={"platform": "cpu", "dtype": "float32"},
        slurm={"signal_seconds": seconds},
    )
    folder = run_folder.make(config)
    assert run_folder.new_attempt(folder) == 1
    checkpoint = folder / "ckpt" / "global_step_5"
    checkpoint.mkdir()
    write_manifest(checkpoint)
    request = request_file(folder, 1)
    request.parent.mkdir()
    request.touch()
    return folder


@pytest.mark.parametrize(
    ("seconds", "train", "reason"),
    [
        (
            120,
            "sys.exit(75)",
            "saved before the time limit: goes on from the checkpoint of step 5",
        ),
        (
            1,
            "time.sleep(600)",
            "the time limit came before the step could be saved within 0.5 s"
            " (slurm.signal_seconds): goes on from the checkpoint of step 5",
        ),
    ],
)
def test_it_is_to_go_on_whether_or_not_it_could_save(
    asked: Callable[[int], Path],
    entrypoints: Entrypoints,
    seconds: int,
    train: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run_dir = asked(seconds)
    assert run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(train)) == SAVED
    [finished] = events.read(run_dir, "finished")
    assert (finished["exit_code"], finished["reason"]) == (SAVED, reason)
    assert f"{reason}\n" in capsys.readouterr().err


@pytest.mark.parametrize(("train", "code"), [("", 0), ("sys.exit(3)", 3)])
def test_one_that_ends_by_itself_is_not_gone_on_with(
    asked: Callable[[int], Path], entrypoints: Entrypoints, train: str, code: int
) -> None:
    assert run_half("train", asked(120), 1, alone=True, entrypoints=entrypoints(train)) == code
