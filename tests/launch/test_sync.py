"""Copies of a run folder by the real rsync, onto a folder of this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.launch import run_folder, sync
from skiff.launch.half import run_half
from skiff.launch.local import INTERRUPTED
from skiff.launch.sync import Copier, rsync_command, synced

from .conftest import processes_of

Configure = Callable[..., Config]


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where copies go."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture
def config(runtime_config: Configure, tmp_path: Path, place: Path) -> Configure:
    """`config(**run)`: a profile that asks for copies."""

    def make(**run: object) -> Config:
        folder = {"folder": str(tmp_path / "runs"), "sync_to": str(place)}
        return runtime_config(run={**folder, **run})

    return make


def filled(config: Config) -> Path:
    """A run folder with something in each place."""
    run = run_folder.make(config)
    (run / "rendezvous" / "key").write_text("planted-secret")
    (run / "logs" / "train.01.log").write_text("said\n")
    (run / "logs" / ".train.half").write_text("half-written")
    checkpoint = run / "ckpt" / "global_step_1"
    checkpoint.mkdir()
    (checkpoint / "weights").write_bytes(b"\0" * 100)
    events.emit(run, "phase", name="tasks", seconds=1)
    return run


def alerts(run: Path) -> list[str]:
    return [event["what"] for event in events.read(run, "alert")]


@contextlib.contextmanager
def copying(copier: Copier) -> Iterator[None]:
    """The copier at work, as often as it can."""
    thread = threading.Thread(target=copier.run, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        copier.end(20)
        thread.join()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_is_copied(config: Configure, place: Path) -> None:
    run = filled(config())
    with synced(config(), run):
        events.emit(run, "finished", exit_code=0, reason="done")
    copy = place / run.name
    found = {str(path.relative_to(copy)) for path in copy.rglob("*") if path.is_file()}
    assert found == {"config.toml", "events.jsonl", "logs/train.01.log"}
    assert (copy / "events.jsonl").read_bytes() == (run / "events.jsonl").read_bytes()
    assert alerts(run) == []


def test_checkpoints_are_copied_when_asked_for(config: Configure, place: Path) -> None:
    asked = config(sync_checkpoints=True)
    run = filled(asked)
    with synced(asked, run):
        pass
    assert (place / run.name / "ckpt" / "global_step_1" / "weights").stat().st_size == 100
    assert not (place / run.name / "rendezvous").exists()


def test_copies_come_again_and_again(config: Configure, place: Path, run_dir: Path) -> None:
    with copying(Copier(config(), run_dir)):
        for word in ("one", "two"):
            (run_dir / "logs" / f"{word}.log").write_text(word)
            until((place / run_dir.name / "logs" / f"{word}.log").exists)


def test_a_failure_is_told_once_and_tried_again(
    config: Configure, place: Path, run_dir: Path
) -> None:
    place.rmdir()
    with copying(Copier(config(), run_dir)):
        until(lambda: alerts(run_dir))
        time.sleep(0.5)  # some more turns
        assert len(alerts(run_dir)) == 1
        assert alerts(run_dir)[0].startswith(f"files could not be copied to {place}: rsync")
        place.mkdir()
        until(lambda: len(alerts(run_dir)) > 1)
    assert alerts(run_dir)[1:] == [f"files are copied to {place} again"]


def test_without_rsync_a_run_goes_on(
    config: Configure, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with synced(config(), run_dir):
        pass
    [alert] = alerts(run_dir)
    assert alert.endswith("rsync is not installed on this node")


def test_before_a_time_limit_there_is_no_waiting(
    config: Configure, run_dir: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    slow = tmp_path / "bin" / "rsync"
    slow.parent.mkdir()
    slow.write_text(f"#!/bin/sh\nexec tail -f {run_dir}/config.toml\n")
    slow.chmod(0o755)
    monkeypatch.setenv("PATH", str(slow.parent), prepend=":")
    monkeypatch.setattr(sync, "HASTE_SECONDS", 0.2)
    with synced(config(), run_dir):
        events.emit(run_dir, "finished", exit_code=INTERRUPTED, reason="interrupted")
    assert alerts(run_dir)[0].endswith("the end of the run came first")
    assert processes_of(run_dir) == []


@pytest.mark.parametrize("train", ["", "sys.exit(3)"])
def test_the_end_of_a_run_is_in_the_copy(
    config: Configure, place: Path, entrypoints: Callable[..., Path], train: str
) -> None:
    run = run_folder.make(config())
    run_folder.new_attempt(run)
    run_half("train", run, 1, alone=True, entrypoints=entrypoints(train))
    copy = place / run.name
    assert (copy / "report.html").read_bytes() == (run / "report.html").read_bytes()
    assert len(list(events.read(copy, "finished"))) == 1
    assert not (copy / "rendezvous").exists()


def test_another_host_is_reached_without_questions(config: Configure, run_dir: Path) -> None:
    command = rsync_command(config(sync_to="me@storage:/runs"), run_dir)
    assert command[-2:] == [f"{run_dir}/", f"me@storage:/runs/{run_dir.name}/"]
    assert "--rsh=ssh -o BatchMode=yes -o ConnectTimeout=20" in command


@pytest.mark.parametrize("place", ["runs", "--rsh=x:/y", "-e:/x", "host:runs", "a b:/x", "", ":/x"])
def test_a_destination_that_is_none(config: Configure, place: str) -> None:
    with pytest.raises(ConfigError, match=r"run\.sync_to: should be /path"):
        config(sync_to=place)


def test_no_destination_no_copy(
    runtime_config: Configure, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with synced(runtime_config(), run_dir):
        pass
    assert alerts(run_dir) == []
