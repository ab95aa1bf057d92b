"""A run folder, as `skiff launch` or `skiff run` leaves one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.config import Config
from skiff.launch import run_folder

LOGS = Path(__file__).parent / "logs"


@pytest.fixture
def run_dir(runtime_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A run folder with one attempt and no log."""
    folder = run_folder.make(runtime_config(run={"folder": str(tmp_path / "runs")}))
    assert run_folder.new_attempt(folder) == 1
    return folder
