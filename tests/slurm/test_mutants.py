"""Some of the damaged profiles of tests/config, through the real program to the real Slurm."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from ..config.mutants import MARK, Mutant, furnish, mutants

SKIFF = Path(sys.executable).with_name("skiff")
DAMAGES = ("shell_words", "shell_in_a_path", "slurm_words", "number", "odd_text", "conflict")
FROM = 100
COUNT = 20


@pytest.fixture
def closed() -> Iterator[None]:
    """Partitions that take jobs and start none."""
    for state in ("down", "up"):
        for name in ("cpu", "gpu"):
            words = [f"PartitionName={name}", f"State={state}"]
            subprocess.run(["scontrol", "update", *words], check=True)
        if state == "down":
            yield


def queue() -> set[str]:
    """The jobs; a heterogeneous one is one."""
    ids = subprocess.check_output(["squeue", "--noheader", "--format=%i"], text=True).split()
    return {job_id.partition("+")[0] for job_id in ids}


@pytest.mark.usefixtures("closed")
def test_each_is_one_error_or_one_job(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    furnish(folder)
    before = set(folder.iterdir())
    codes: Counter[int] = Counter()
    for mutant in sample(folder):
        profile = tmp_path / "profile.toml"
        profile.write_bytes(mutant.content)
        command = [SKIFF, "launch", profile]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        codes[done.returncode] += 1
        if done.returncode == 0:
            assert len(queue()) == 1, mutant
            subprocess.run(["scancel", *queue()], check=True)
        else:
            first, *more = done.stderr.splitlines()
            assert first.startswith("error: "), (mutant, done)
            assert all(line.startswith("  ") for line in more), (mutant, done)
            assert queue() == set(), mutant
            assert list(folder.rglob("config.toml")) == [], mutant
        assert list(folder.rglob(MARK)) == [], mutant
        for path in set(folder.iterdir()) - before:
            shutil.rmtree(path)
    assert set(codes) == {0, 2, 3}


def sample(folder: Path) -> list[Mutant]:
    """Those that are most like sound ones."""
    found = [mutant for mutant in mutants(folder, 1000) if mutant.damage in DAMAGES]
    return found[FROM::10][:COUNT]
