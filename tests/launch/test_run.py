"""`skiff run` and `skiff resume` around the halves: what is checked, recorded and reported."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from skiff import events
from skiff.config import Config
from skiff.errors import ConfigError, InfraError, TaskError
from skiff.launch import local, run, run_folder

Configured = Callable[..., Config]
Halves = Callable[[Exception | KeyboardInterrupt | None], list[int]]


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200)


@pytest.fixture
def config(runtime_config: Configured, tmp_path: Path) -> Config:
    return runtime_config(
        run={"folder": str(tmp_path / "runs")}, model={"path": "warm-start"}, warm_start={}
    )


@pytest.fixture
def halves(monkeypatch: pytest.MonkeyPatch) -> Halves:
    """`halves(error)`: attempts that end so; returns their numbers."""

    def make(error: Exception | KeyboardInterrupt | None) -> list[int]:
        numbers: list[int] = []

        def run_attempt(config: Config, run_dir: Path, attempt: int, *, watch: Any) -> None:
            numbers.append(attempt)
            watch()
            if error is not None:
                raise error

        monkeypatch.setattr(local, "run_attempt", run_attempt)
        monkeypatch.setattr(run, "ensure_sandbox_image", lambda: False)
        return numbers

    return make


def the_run(tmp_path: Path) -> Path:
    (folder,) = (tmp_path / "runs").iterdir()
    return folder


def finished(run_dir: Path) -> dict[str, Any]:
    return list(events.read(run_dir, "finished"))[-1]


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_a_run_leaves_a_report(
    config: Config, tmp_path: Path, console: Console, halves: Halves
) -> None:
    halves(None)
    assert run.run(config, console) == 0
    folder = the_run(tmp_path)
    assert (finished(folder)["exit_code"], finished(folder)["reason"]) == (0, "done")
    assert (folder / "report.html").stat().st_size > 0
    assert f"report: {folder}/report.html" in text_of(console)


def test_a_failure_is_recorded_and_reported(
    config: Config, tmp_path: Path, console: Console, halves: Halves
) -> None:
    halves(InfraError("podman is gone", where="runtime server"))
    with pytest.raises(InfraError):
        run.run(config, console)
    found = finished(the_run(tmp_path))
    assert (found["exit_code"], found["reason"]) == (3, "runtime server: podman is gone")
    assert (the_run(tmp_path) / "report.html").exists()


def test_a_crash_of_ours_is_not_recorded_as_success(
    config: Config, tmp_path: Path, console: Console, halves: Halves
) -> None:
    halves(KeyError("bug"))
    with pytest.raises(KeyError):
        run.run(config, console)
    assert finished(the_run(tmp_path))["exit_code"] == 1


def test_an_interrupted_run_can_be_resumed(
    config: Config, tmp_path: Path, console: Console, halves: Halves
) -> None:
    halves(KeyboardInterrupt())
    assert run.run(config, console) == 130
    folder = the_run(tmp_path)
    assert f"skiff resume {folder}" in text_of(console)
    assert finished(folder)["reason"] == "interrupted"
    numbers = halves(None)
    assert run.resume(folder, console) == 0
    assert numbers == [2]
    assert finished(folder)["attempt"] == 2


def test_a_full_disk_does_not_hide_the_error(
    config: Config, console: Console, halves: Halves, monkeypatch: pytest.MonkeyPatch
) -> None:
    halves(InfraError("verl ended"))

    def full(_: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(run, "write_report", full)
    with pytest.raises(InfraError, match="verl ended"):
        run.run(config, console)
    assert "no report: [Errno 28] No space left on device" in text_of(console)


@pytest.mark.parametrize(
    ("sections", "error"),
    [
        ({"model": {"path": "/nowhere"}}, ConfigError),
        ({"tasks": {"train": ["shell:trian"]}}, TaskError),
        ({"tasks": {"validation": ["tasks:/gone.jsonl"]}}, TaskError),
        ({"tasks": {"validation": ["shell:train"]}}, ConfigError),
        ({"runtime": {"url": "http://elsewhere:1"}}, ConfigError),
    ],
)
def test_a_bad_input_is_refused_before_anything_is_made(
    config: Config,
    tmp_path: Path,
    console: Console,
    halves: Halves,
    monkeypatch: pytest.MonkeyPatch,
    sections: dict[str, dict[str, Any]],
    error: type[Exception],
) -> None:
    monkeypatch.delenv("SKIFF_RUNTIME_KEY_FILE", raising=False)
    numbers = halves(None)
    changed = {
        name: getattr(config, name).model_copy(update=values) for name, values in sections.items()
    }
    with pytest.raises(error):
        run.run(config.model_copy(update=changed), console)
    assert numbers == []
    assert not (tmp_path / "runs").exists()


def test_a_resume_needs_its_model(
    runtime_config: Configured, tmp_path: Path, console: Console, halves: Halves
) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").touch()
    config = runtime_config(
        run={"folder": str(tmp_path / "runs")}, model={"path": str(tmp_path / "model")}
    )
    numbers = halves(None)
    run.run(config, console)
    (tmp_path / "model" / "config.json").unlink()
    with pytest.raises(ConfigError, match="is no Hugging Face model folder"):
        run.resume(the_run(tmp_path), console)
    assert numbers == [1]


def test_a_run_in_use_is_not_resumed(
    config: Config, tmp_path: Path, console: Console, halves: Halves
) -> None:
    numbers = halves(None)
    run.run(config, console)
    with (
        run_folder.lock(the_run(tmp_path)),
        pytest.raises(ConfigError, match="is in use by another launcher"),
    ):
        run.resume(the_run(tmp_path), console)
    assert numbers == [1]
