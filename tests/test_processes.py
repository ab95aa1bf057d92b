"""Children end with all that they have started, and nothing else does."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from skiff import processes
from skiff.processes import Child

SECONDS = 20
# Starts a daemon as Ray and conmon do (own session, parent gone), writes its pid to a file.
DAEMON = """
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        {prepare}
        with open({file!r} + ".part", "w") as out:
            out.write(str(os.getpid()))
        os.rename({file!r} + ".part", {file!r})
        time.sleep({seconds})
    os._exit(0)
os.wait()
{then}
"""


@pytest.fixture
def daemon(tmp_path: Path) -> Callable[..., list[str]]:
    """`daemon(then, prepare, seconds)`: a command that leaves a daemon and then does `then`."""

    def command(then: str = "", prepare: str = "", seconds: float = 600) -> list[str]:
        file = str(tmp_path / "pid")
        code = DAEMON.format(file=file, then=then, prepare=prepare or "pass", seconds=seconds)
        return [sys.executable, "-c", code]

    return command


@pytest.fixture
def start(tmp_path: Path) -> Callable[[list[str]], Child]:
    return lambda command: Child(command, os.environ, tmp_path / "log")


@pytest.fixture
def bystander() -> Iterator[subprocess.Popen[bytes]]:
    """Another child of ours that nobody may touch."""
    with subprocess.Popen(["sleep", "600"]) as process:
        yield process
        process.kill()


def becomes(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def pid_in(file: Path) -> int:
    becomes(file.exists)
    return int(file.read_text())


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)]
)
def test_the_exit_code_is_the_commands(
    start: Callable[[list[str]], Child], code: str, expected: int
) -> None:
    with start([sys.executable, "-c", code]) as child:
        becomes(lambda: child.returncode is not None)
    assert child.returncode == expected


def test_output_goes_to_the_log(start: Callable[[list[str]], Child], tmp_path: Path) -> None:
    (tmp_path / "log").write_text("before\n")
    with start(["sh", "-c", "echo out; echo err >&2; cat"]) as child:
        becomes(lambda: child.returncode == 0)
    assert (tmp_path / "log").read_text() == "before\nout\nerr\n"


def test_a_daemon_of_an_ended_command_is_ended(
    start: Callable[[list[str]], Child],
    daemon: Callable[..., list[str]],
    tmp_path: Path,
    bystander: subprocess.Popen[bytes],
) -> None:
    with start(daemon()) as child:
        becomes(lambda: child.returncode == 0)
        pid = pid_in(tmp_path / "pid")
        assert alive(pid)
    assert not alive(pid)
    assert bystander.poll() is None


def test_an_orphan_without_the_mark_was_seen_before(
    start: Callable[[list[str]], Child], bystander: subprocess.Popen[bytes]
) -> None:
    """Ray's workers write their titles over their environment."""
    with start(["sh", "-c", "env -i sleep 599 & wait"]) as child:
        below = psutil.Process(child.pid).children
        becomes(lambda: [p.name() for p in below()] == ["sleep"])
        (orphan,) = below()
        becomes(lambda: child.returncode is None and orphan in child._seen)
        os.kill(child.pid, signal.SIGKILL)
        becomes(lambda: child.returncode is not None)
        assert alive(orphan.pid)
    assert not alive(orphan.pid)
    assert bystander.poll() is None


def test_a_daemon_that_ignores_sigterm_is_killed(
    start: Callable[[list[str]], Child],
    daemon: Callable[..., list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "REST_SECONDS", 0.2)
    ignore = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)"
    with start(daemon(prepare=ignore)):
        pid = pid_in(tmp_path / "pid")
    assert not alive(pid)


def test_a_command_that_ignores_sigterm_is_killed(
    start: Callable[[list[str]], Child], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "TERM_SECONDS", 0.2)
    with start(
        ["sh", "-c", f"trap '' TERM; touch {tmp_path}/ready; while :; do sleep 1; done"]
    ) as child:
        becomes((tmp_path / "ready").exists)
    assert child.returncode == -signal.SIGKILL


def test_an_exception_ends_it_all(
    start: Callable[[list[str]], Child], daemon: Callable[..., list[str]], tmp_path: Path
) -> None:
    child = start(daemon(then="time.sleep(600)"))
    pid = pid_in(tmp_path / "pid")

    def interrupted() -> None:
        with child:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert child.returncode == -signal.SIGTERM
    assert not alive(pid)


def test_two_children_are_told_apart(
    start: Callable[[list[str]], Child], daemon: Callable[..., list[str]], tmp_path: Path
) -> None:
    with start(daemon()) as first:
        pid = pid_in(tmp_path / "pid")
        with start(["sleep", "600"]) as second:
            pass
        assert second.returncode == -signal.SIGTERM
        assert alive(pid)
        becomes(lambda: first.returncode == 0)
    assert not alive(pid)


def test_ended_orphans_do_not_stay_as_zombies(
    start: Callable[[list[str]], Child], daemon: Callable[..., list[str]], tmp_path: Path
) -> None:
    own = subprocess.Popen(["true"])  # reaped by nobody but its owner
    with start(daemon(then="time.sleep(600)", seconds=0)) as child:
        pid = pid_in(tmp_path / "pid")
        becomes(lambda: child.returncode is None and not psutil.pid_exists(pid))
    assert own.wait() == 0
    assert own.returncode == 0


def test_a_child_is_told_when_we_are_killed(tmp_path: Path) -> None:
    code = (
        "import os, time, pathlib\n"
        "from skiff.processes import Child\n"
        "child = Child(['sleep', '600'], os.environ, pathlib.Path('log'))\n"
        "pathlib.Path('part').write_text(str(child.pid))\n"
        "os.rename('part', 'pid')\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    pid = pid_in(tmp_path / "pid")
    assert alive(pid)
    parent.kill()
    parent.wait()
    becomes(lambda: not alive(pid))
