"""The fixtures of the runs that are submitted to a real Slurm."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff.config import Config
from skiff.config.load import dump_toml

from .runs import TOOL, Run, SlurmTool, interpreter, nodes, running_slurm, submitting


@pytest.fixture(scope="session", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmTool]:
    """Slurm's programs reach it, and no other one."""
    with running_slurm(tmp_path_factory.mktemp("slurm") / "one") as tool:
        yield tool


DRIVER = """
import functools, pathlib, sys
from skiff.launch import half
half.run_half = functools.partial(half.run_half, entrypoints=pathlib.Path({entrypoints!r}))
assert sys.argv[1:3] == ["-m", "skiff.launch.half"]
del sys.argv[1:3]
half.main()
"""


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`stand_in(body, shell="")`: jobs that are submitted from now on run the Python program `body`
    as their trainer; all else is real. `shell` is run on a node before each half."""

    def call(body: str, *, shell: str = "") -> None:
        folder = tmp_path / "entrypoints"
        folder.mkdir()
        (folder / "train").write_text(body)
        (folder / "runtime").symlink_to(TOOL.parents[1] / "entrypoints" / "runtime")
        driver = tmp_path / "driver.py"
        driver.write_text(DRIVER.format(entrypoints=str(folder)))
        command = f'"{sys.executable}" "{driver}"'
        monkeypatch.setattr(sys, "executable", interpreter(tmp_path / "python", command, shell))

    return call


@pytest.fixture
def profile(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Sections of a profile for this Slurm, with a model that looks like one."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    return {
        "run": {"name": "tiny", "folder": str(tmp_path / "runs")},
        "model": {"path": str(model), "context_tokens": 8192},
        "runtime": {"host": "0.0.0.0"},
        "hardware": {"platform": "cpu", "dtype": "float32"},
        "slurm": nodes(),
    }


@pytest.fixture
def write(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> Callable[[dict[str, dict[str, Any]]], Path]:
    """`write(profile)`: the file of the whole profile."""

    def call(profile: dict[str, dict[str, Any]]) -> Path:
        file = tmp_path / "profile.toml"
        file.write_text(dump_toml(runtime_config(**profile)))
        return file

    return call


@pytest.fixture
def submit_run(runtime_config: Callable[..., Config]) -> Iterator[Callable[..., Run]]:
    """`submit_run(profile, runtime_only=False, before=...)`, as runs.submitting says it."""
    with submitting() as submit:
        yield lambda profile, **options: submit(runtime_config(**profile), **options)
