"""The run folder: made once, read back, held by one launcher at a time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.launch import run_folder

Configured = Callable[..., Config]


def test_it_holds_the_config(runtime_config: Configured, tmp_path: Path) -> None:
    config = runtime_config(run={"folder": str(tmp_path / "a" / "b"), "name": "mine"})
    folder = run_folder.make(config)
    assert folder.parent == tmp_path / "a" / "b"
    assert folder.name.startswith("mine-")
    assert run_folder.read_config(folder) == config
    assert {path.name for path in folder.iterdir()} == {*run_folder.FOLDERS, "config.toml"}


def test_files_are_named_absolutely(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    config = runtime_config(
        run={"folder": "runs"}, model={"path": "tiny"}, tasks={"skip_list": "skip"}
    )
    folder = run_folder.make(config)
    assert folder.is_absolute()
    found = run_folder.read_config(folder)
    assert found.model.path == str(tmp_path / "tiny")
    assert found.tasks.skip_list == tmp_path / "skip"


def test_a_warm_start_is_no_path(runtime_config: Configured, tmp_path: Path) -> None:
    config = runtime_config(
        run={"folder": str(tmp_path)}, model={"path": "warm-start"}, warm_start={}
    )
    assert run_folder.read_config(run_folder.make(config)).model.path == "warm-start"


def test_an_unwritable_place_is_named(runtime_config: Configured, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = runtime_config(run={"folder": str(tmp_path / "file" / "runs")})
    with pytest.raises(ConfigError, match="cannot be written: Not a directory") as caught:
        run_folder.make(config)
    assert caught.value.remedy == "set run.folder"


def test_two_runs_of_one_second_are_told_apart(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "now")
    config = runtime_config(run={"folder": str(tmp_path)})
    run_folder.make(config)
    with pytest.raises(ConfigError, match="exists already"):
        run_folder.make(config)


def test_another_folder_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run folder \(no config\.toml in it\)"):
        run_folder.read_config(tmp_path)


def test_attempts_are_numbered(run_dir: Path) -> None:
    assert [run_folder.new_attempt(run_dir) for _ in range(3)] == [2, 3, 4]


def test_no_number_is_given_twice(run_dir: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        numbers = list(pool.map(lambda _: run_folder.new_attempt(run_dir), range(40)))
    assert sorted(numbers) == list(range(2, 42))


def test_an_unwritable_run_is_named(run_dir: Path) -> None:
    (run_dir / "attempts" / "01").rmdir()
    (run_dir / "attempts").rmdir()
    (run_dir / "attempts").touch()
    with pytest.raises(ConfigError, match="cannot be written: Not a directory"):
        run_folder.new_attempt(run_dir)


def test_one_launcher_at_a_time(run_dir: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from skiff.launch import run_folder\n"
        "with run_folder.lock(pathlib.Path(sys.argv[1])):\n"
        "    print('held', flush=True)\n"
        "    sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(run_dir)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(ConfigError, match="is in use by another launcher"):
            run_folder.lock(run_dir).__enter__()
    with run_folder.lock(run_dir):
        pass
