"""Scratch folders of living, ended and killed makers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.train import scratch

MAKER = """
import pathlib, sys, time
from skiff.train import scratch
scratch.ROOT = pathlib.Path(sys.argv[1])
with scratch.scratch() as folder:
    (folder / "socket").touch()
    print(folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(scratch, "ROOT", tmp_path)
    return tmp_path


def test_a_folder_is_private_and_ends_with_the_block(root: Path) -> None:
    with scratch.scratch() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
        assert list(root.iterdir()) == [folder]
        (folder / "ray").mkdir()
    assert list(root.iterdir()) == []


def test_what_a_killed_maker_has_left_is_removed_by_the_next(root: Path) -> None:
    command = [sys.executable, "-c", MAKER, str(root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as maker:
        assert maker.stdout is not None
        left = Path(maker.stdout.readline().strip())
        scratch.remove_abandoned()
        assert (left / "socket").exists()  # in use
        maker.kill()
    with scratch.scratch() as folder:
        assert list(root.iterdir()) == [folder]


def test_another_node_has_the_folder_at_the_same_place(root: Path) -> None:
    place = root / f"{scratch.PREFIX}other"
    with scratch.scratch(place) as folder:
        assert folder == place
        with scratch.scratch(place):  # on the same host
            assert list(root.iterdir()) == [place]
        assert place.exists()
        scratch.remove_abandoned()
        assert place.exists()
    assert not place.exists()


def test_another_users_folder_is_refused(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = root / f"{scratch.PREFIX}other"
    place.mkdir()
    monkeypatch.setattr("os.getuid", lambda: 4711)
    with pytest.raises(InfraError, match="is another user's"), scratch.scratch(place):
        pass
    assert place.exists()
