"""An unshared run folder is found out by the job's own id."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.launch import canary
from skiff.launch.canary import check_shared
from skiff.launch.sbatch import Shape
from skiff.launch.submit import note_jobs


@pytest.fixture(autouse=True)
def job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "THERE_SECONDS", 0.1)
    monkeypatch.setattr(canary, "NOTED_SECONDS", 0.3)
    monkeypatch.setattr(canary, "POLL_SECONDS", 0.02)
    monkeypatch.setenv("SLURM_JOB_ID", "18")
    monkeypatch.setenv("SLURMD_NODENAME", "gpu7")


def test_the_folder_of_our_submission_is_shared(run_dir: Path) -> None:
    note_jobs(run_dir / "attempts" / "01", {Shape.RUNTIME: "17", Shape.TRAINER: "18"})
    check_shared(run_dir)


def test_a_part_of_a_heterogeneous_job_knows_the_whole(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_jobs(run_dir / "attempts" / "01", {Shape.HET: "17"})
    monkeypatch.setenv("SLURM_JOB_ID_HET_GROUP_0", "17")
    check_shared(run_dir)


def test_a_job_may_begin_before_it_is_noted(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canary, "NOTED_SECONDS", 20)
    noted = {Shape.RUNTIME: "18"}
    later = threading.Timer(0.2, note_jobs, (run_dir / "attempts" / "01", noted))
    later.start()
    check_shared(run_dir)
    later.join()


def test_a_node_without_the_folder_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(InfraError) as caught:
        check_shared(gone)
    assert caught.value.where == str(gone)
    assert caught.value.what == "is not shared: node gpu7 has no run folder there"
    assert "set run.folder" in caught.value.remedy


def test_a_copy_is_not_the_folder(run_dir: Path) -> None:
    note_jobs(run_dir / "attempts" / "01", {Shape.HET: "3"})
    with pytest.raises(InfraError, match="node gpu7 has another folder there"):
        check_shared(run_dir)
