"""Fixtures of the images' smoke tests: `make build-sif`, then `make test-sif`."""

from __future__ import annotations

import os
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff.apptainer import apptainer_environment, find_apptainer
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.images.definitions import DEFAULT, find_image
from skiff.images.runnable import runnable
from skiff.train import tiny

from ..slurm.runs import SlurmTool, running_slurm

TINY = Path(__file__).parents[1] / "tiny.toml"


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


@pytest.fixture
def make_config(sif: Callable[[str], Path], tmp_path: Path) -> Callable[..., Config]:
    """`make_config(runtime={...})`: one small step, both halves from images."""

    def make(**sections: dict[str, Any]) -> Config:
        data: dict[str, dict[str, Any]] = tomllib.loads(TINY.read_text())
        data["run"] = {"name": "sif", "folder": str(tmp_path / "runs")}
        data["model"]["path"] = "none"
        data["tasks"]["train_limit"] = 4
        data["images"] = {"runtime": str(sif("runtime")), "trainer": str(sif("trainer-cpu"))}
        for name, values in sections.items():
            data.setdefault(name, {}).update(values)
        return parse_config(data)

    return make


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random tiny Qwen3 whose tokenizer knows the words of the shell tasks."""
    folder = tmp_path_factory.mktemp("made") / "model"
    tiny.make_shell_model(folder)
    return folder


@pytest.fixture(scope="session")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmTool]:
    """Slurm's programs reach it, and no other one."""
    with running_slurm(tmp_path_factory.mktemp("slurm") / "one") as tool:
        yield tool
