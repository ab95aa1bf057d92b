"""Both halves as real processes: order of start and end, errors, restarts, signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil
import pytest
from skiff import events
from skiff.config import Config, load_run_config
from skiff.errors import InfraError
from skiff.launch import local

Entrypoints = Callable[..., Path]
Story = Callable[[], list[str]]
WAIT = 'on_term("train ends")\ntell("train starts")\ntime.sleep(600)\n'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)


def run(run_dir: Path, entrypoints: Path, watch: Callable[[], None] = lambda: None) -> None:
    config = load_run_config(run_dir / "config.toml")
    local.run_attempt(config, run_dir, 1, watch=watch, entrypoints=entrypoints)


def test_the_runtime_outlives_the_trainer(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    calls: list[bool] = []
    run(
        run_dir,
        entrypoints('tell(f"train {options.attempt} {rendezvous.exists()}"); time.sleep(0.1)'),
        watch=lambda: calls.append(True),
    )
    assert story() == ["runtime starts None", "train 1 True", "runtime ends"]
    assert calls
    assert {path.name for path in (run_dir / "logs").iterdir()} == {
        "train.01.log",
        "runtime.01.log",
    }


def test_a_stale_rendezvous_is_not_believed(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    (run_dir / "rendezvous" / "runtime.json").write_text('{"port": 1}')
    slow = "time.sleep(0.3); tell('up'); publish(); time.sleep(600)"
    run(run_dir, entrypoints('tell("train")', slow))
    assert story() == ["up", "train"]


def test_a_failed_trainer_is_quoted(run_dir: Path, entrypoints: Entrypoints, story: Story) -> None:
    train = """
    print("error: of a library, long ago")
    print("error: ckpt: no whole checkpoint\\n  -> look there", file=sys.stderr)
    sys.exit(3)
    """
    with pytest.raises(InfraError) as caught:
        run(run_dir, entrypoints(train))
    assert str(caught.value).startswith("trainer: ckpt: no whole checkpoint\n  -> look there")
    assert f"skiff resume {run_dir}" in caught.value.remedy
    assert story()[-1] == "runtime ends"


def test_a_trainer_without_words_has_its_exit_code(run_dir: Path, entrypoints: Entrypoints) -> None:
    with pytest.raises(InfraError, match="trainer: exit code -9"):
        run(run_dir, entrypoints("os.kill(os.getpid(), 9)"))


def test_a_runtime_that_does_not_come_up_is_quoted(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    dead = 'print("error: port 80 is taken", file=sys.stderr); sys.exit(2)'
    with pytest.raises(InfraError, match="runtime server: port 80 is taken"):
        run(run_dir, entrypoints('tell("train")', dead))
    assert story() == []


def test_a_runtime_that_never_gets_ready_is_ended(
    run_dir: Path, entrypoints: Entrypoints, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "READY_SECONDS", 0.5)
    with pytest.raises(InfraError, match=r"runtime server: was not ready within 0\.5 s"):
        run(run_dir, entrypoints('tell("train")', "time.sleep(600)"))
    assert story() == []


def test_a_dead_runtime_is_restarted_on_its_port(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    # It removes its rendezvous file when it ends by itself, and leaves it when it is killed.
    runtime = """
    tell(f"runtime {options.port}")
    publish()
    time.sleep(0.3)
    if options.port is None:
        rendezvous.unlink()
        sys.exit(1)
    if (run / "killed").exists():
        on_term("runtime ends")
        tell("lives")
        time.sleep(600)
    (run / "killed").touch()
    os.kill(os.getpid(), 9)
    """
    train = """
    while "lives" not in (run / "story").read_text():
        time.sleep(0.02)
    """
    run(run_dir, entrypoints(train, runtime))
    assert story() == ["runtime None", "runtime 4321", "runtime 4321", "lives", "runtime ends"]
    found = [(event["restart"], event["what"]) for event in events.read(run_dir, "error")]
    assert [number for number, _ in found] == [1, 2]
    assert found[1][1] == "the runtime server ended with exit code -9"


def test_a_runtime_that_always_dies_ends_the_run(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    runtime = """
    tell("runtime")
    publish()
    time.sleep(0.1)
    print("error: podman is gone", file=sys.stderr)
    sys.exit(3)
    """
    with pytest.raises(InfraError) as caught:
        run(run_dir, entrypoints(WAIT, runtime))
    assert "exit code 3 after 3 restarts: podman is gone" in str(caught.value)
    assert story().count("runtime") == 1 + local.RESTARTS


def test_an_exception_ends_the_trainer_first(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    def interrupt() -> None:
        if "train starts" in story():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(run_dir, entrypoints(WAIT), watch=interrupt)
    assert story()[-2:] == ["train ends", "runtime ends"]


LAUNCHER = """
import sys
from pathlib import Path
from skiff.config import load_run_config
from skiff.launch import local
run_dir, entrypoints = Path(sys.argv[1]), Path(sys.argv[2])
config = load_run_config(run_dir / "config.toml")
try:
    local.run_attempt(config, run_dir, 1, watch=lambda: None, entrypoints=entrypoints)
except KeyboardInterrupt:
    sys.exit(130)
"""
SLOW_END = """
def handler(*_):
    tell("train ending")
    time.sleep(0.5)
    tell("train ends")
    sys.exit(143)
signal.signal(signal.SIGTERM, handler)
tell("train starts")
time.sleep(600)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_both_in_order_even_when_repeated(
    run_dir: Path, entrypoints: Entrypoints, story: Story, number: signal.Signals
) -> None:
    folder = entrypoints(SLOW_END)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run_dir), str(folder)])
    until(lambda: "train starts" in story())
    launcher.send_signal(number)
    until(lambda: "train ending" in story())
    launcher.send_signal(number)  # an impatient user
    assert launcher.wait(30) == 130
    assert story()[-3:] == ["train ending", "train ends", "runtime ends"]


def test_a_killed_launcher_leaves_nothing(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    folder = entrypoints(WAIT)
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, str(run_dir), str(folder)])
    until(lambda: "train starts" in story())
    launcher.kill()
    launcher.wait()
    until(lambda: {"train ends", "runtime ends"} <= set(story()))


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_server_elsewhere_is_not_started_here(
    runtime_config: Callable[..., Config], run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    config = runtime_config(runtime={"url": "http://elsewhere:1"})
    folder = entrypoints('tell("train")')
    local.run_attempt(config, run_dir, 1, watch=lambda: None, entrypoints=folder)
    assert story() == ["train"]


def test_a_real_server_for_commands_that_are_no_run(sandbox_config: Config) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with local.runtime_server(sandbox_config) as server:
        answer = httpx.get(f"{server.url}/list", headers={"X-API-Key": server.key})
        assert answer.status_code == 200
        assert httpx.get(f"{server.url}/list", headers={"X-API-Key": "wrong"}).status_code == 401
        server.check()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health")
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_server_that_dies_ends_the_command(sandbox_config: Config) -> None:
    with local.runtime_server(sandbox_config) as server:
        process = psutil.Process(server.child.pid)
        process.kill()
        process.wait(10)
        with pytest.raises(InfraError, match="runtime server"):
            server.check()


def test_an_empty_log_on_a_full_disk_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.01.log"
    log.touch()
    assert local.last_error(log) == ""
    monkeypatch.setattr(local, "FULL_BYTES", 1 << 60)  # so this disk is full
    assert "No space left on device" in local.last_error(log)
    log.write_text("error: another one\n")
    assert local.last_error(log) == "another one"


def test_the_last_error_is_found(tmp_path: Path) -> None:
    log = tmp_path / "log"
    assert local.last_error(log) == ""
    log.write_text("")
    assert local.last_error(log) == ""
    log.write_text("one\nTraceback\nKeyError: 'x'\n")
    assert local.last_error(log) == "KeyError: 'x'"
    log.write_text("error: first\nnoise\nerror: a.toml: bad\n  -> fix it\n")
    assert local.last_error(log) == "a.toml: bad\n  -> fix it"
    log.write_text("error: first\nthe word error: within\n")
    assert local.last_error(log) == "first\nthe word error: within"


def test_real_entry_points_print_one_error(tmp_path: Path) -> None:
    for name, options in (("train", []), ("runtime", ["--key-file", str(tmp_path / "key")])):
        command = [sys.executable, str(local.ENTRYPOINTS / name)]
        command += ["--config", str(tmp_path / "gone.toml")]
        command += ["--rendezvous", str(tmp_path / "r.json"), *options]
        done = subprocess.run(
            command, capture_output=True, text=True, check=False, env=dict(os.environ)
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.startswith(f"error: {tmp_path}/gone.toml: no such profile")
        assert "Traceback" not in done.stderr
        assert json.dumps(done.stdout) == '""'
