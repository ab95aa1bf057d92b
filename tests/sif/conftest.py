"""Fixtures of the images' smoke tests: `make build-sif`, then `make test-sif`."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from skiff.apptainer import apptainer_environment, find_apptainer
from skiff.images.definitions import DEFAULT, find_image
from skiff.images.runnable import runnable


@pytest.fixture(scope="session")
def sif() -> Callable[[str], Path]:
    """`sif(name)`: the built image. Missing ones are a failure: nothing is skipped."""
    folder = Path(os.environ.get("SKIFF_SIF", "sif")).absolute()

    def path(name: str) -> Path:
        found = folder / find_image(name).file_name()
        if not found.is_file():
            pytest.fail(f"{found} is missing: make build-sif")
        return found

    return path


@pytest.fixture(params=DEFAULT)
def image(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def place(
    image: str, sif: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """What apptainer is given for the image; spython finds it by the name that it calls."""
    for name, value in apptainer_environment().items():
        monkeypatch.setenv(name, value)
    program = tmp_path / "bin" / "singularity"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {find_apptainer()} "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    return runnable(sif(image))


@pytest.fixture
def common() -> Iterator[Path]:
    """A folder that every user may pass."""
    with tempfile.TemporaryDirectory(dir="/tmp") as name:
        Path(name).chmod(0o755)
        yield Path(name)
