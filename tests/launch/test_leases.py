"""Proof of life between the halves: who is taken for dead, and when."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.launch import leases
from skiff.launch.leases import Lease, Partner

SECONDS = 0.6
WAIT = 5.0


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def fails(partner: Partner) -> bool:
    try:
        partner.check()
    except InfraError:
        return True
    return False


def partner(folder: Path, *, nodes: int = 1, wait_seconds: float = WAIT) -> Partner:
    return Partner(folder, "train", nodes=nodes, seconds=SECONDS, wait_seconds=wait_seconds)


def test_a_lease_is_renewed_and_goes_with_its_half(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    path = tmp_path / "lease-train-gpu1.json"
    with Lease(tmp_path, "train", "gpu1", seconds=SECONDS):
        first = json.loads(path.read_text())
        until(lambda: json.loads(path.read_text())["number"] > first["number"])
    assert (first["half"], first["node"], first["job"]) == ("train", "gpu1", "17")
    assert abs(first["time"] - time.time()) < 60
    assert not path.exists()


def test_a_half_whose_lease_is_renewed_lives(tmp_path: Path) -> None:
    watching = partner(tmp_path)
    with Lease(tmp_path, "train", "gpu1", seconds=SECONDS):
        begun = time.monotonic()
        while time.monotonic() - begun < 3 * SECONDS:
            watching.check()
            time.sleep(0.02)


@pytest.mark.parametrize("leave_file", [True, False])
def test_a_half_that_renews_no_more_is_dead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, leave_file: bool
) -> None:
    watching = partner(tmp_path)
    path = tmp_path / "lease-train-gpu1.json"
    with Lease(tmp_path, "train", "gpu1", seconds=SECONDS):
        watching.check()
        before = path.read_text()
        until(lambda: path.read_text() != before)
        watching.check()
        left = path.read_text()
    if leave_file:  # as a killed one does
        path.write_text(left)
    until(lambda: fails(watching))
    with pytest.raises(InfraError, match="train half on gpu1: has not renewed its lease for"):
        watching.check()


def test_a_file_that_nobody_renews_is_not_believed(tmp_path: Path) -> None:
    (tmp_path / "lease-train-gpu1.json").write_text('{"time": 9e9}')
    watching = partner(tmp_path, wait_seconds=0.2)
    watching.check()
    until(lambda: fails(watching))
    with pytest.raises(InfraError, match=r"train half: 0 of 1 nodes have appeared within 0\.2 s"):
        watching.check()


def test_all_nodes_of_a_half_are_waited_for(tmp_path: Path) -> None:
    watching = partner(tmp_path, nodes=2, wait_seconds=1.0)
    with Lease(tmp_path, "train", "gpu1", seconds=SECONDS):
        until(lambda: fails(watching))
        with pytest.raises(InfraError, match="1 of 2 nodes"):
            watching.check()


def test_who_cannot_renew_his_own_lease_gives_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Lease(tmp_path, "train", "gpu1", seconds=SECONDS) as lease:
        lease.check()

        def refuse(*_: object) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(leases, "write_atomic", refuse)

        def given_up() -> bool:
            try:
                lease.check()
            except InfraError as error:
                return "could not be renewed" in str(error) and "No space left" in str(error)
            return False

        until(given_up)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match=r"lease-train-gpu1\.json: cannot be written"):
        Lease(tmp_path / "gone", "train", "gpu1", seconds=SECONDS).__enter__()
