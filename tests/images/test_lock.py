"""The lock between processes: real ones, some of them killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.images import lock
from skiff.images.lock import locked
from skiff.images.owner import REMOTE_SECONDS, Owner, scratch, sweep

HOLD = """
import sys, time
from pathlib import Path
from skiff.images.lock import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""
COUNT = """
import sys
from pathlib import Path
from skiff.images.lock import locked
place, counter = Path(sys.argv[1]), Path(sys.argv[2])
for _ in range(20):
    with locked(place):
        value = int(counter.read_text())
        counter.write_text("")
        counter.write_text(str(value + 1))
"""


class TimeUpError(Exception):
    """A test's patience has ended."""


def until(seconds: float) -> Callable[[], None]:
    deadline = time.monotonic() + seconds

    def check() -> None:
        if time.monotonic() > deadline:
            raise TimeUpError

    return check


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "locks" / "image"


@pytest.fixture
def holder(place: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds the lock until its stdin ends."""
    command = [sys.executable, "-c", HOLD, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()


def test_it_is_given_back(place: Path) -> None:
    for _ in range(2):
        with locked(place):
            (file,) = place.iterdir()
            assert Owner.parse(file.name).pid == os.getpid()
        assert not place.exists()
    assert list((place.parent / "waiting").iterdir()) == []


def test_it_is_given_back_after_an_error(place: Path) -> None:
    with pytest.raises(RuntimeError), locked(place):
        raise RuntimeError
    assert not place.exists()


def test_who_waits_gets_it_next(place: Path, holder: subprocess.Popen[bytes]) -> None:
    with pytest.raises(TimeUpError), locked(place, check=until(0.5)):
        pass
    assert list((place.parent / "waiting").iterdir()) == []
    assert holder.stdin is not None
    holder.stdin.close()
    with locked(place, check=until(20)):
        assert holder.wait(20) == 0


def test_a_killed_owner_loses_it(place: Path, holder: subprocess.Popen[bytes]) -> None:
    holder.kill()
    with locked(place, check=until(20)):
        (file,) = place.iterdir()
        assert Owner.parse(file.name).pid == os.getpid()


def test_a_zombie_owner_loses_it(place: Path, holder: subprocess.Popen[bytes]) -> None:
    os.kill(holder.pid, signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with locked(place, check=until(20)):
        pass


def test_a_living_owner_keeps_it(place: Path, holder: subprocess.Popen[bytes]) -> None:
    """However old its renewal is: a stopped process may go on."""
    holder.send_signal(signal.SIGSTOP)
    (file,) = place.iterdir()
    os.utime(file, (0, 0))
    with pytest.raises(TimeUpError), locked(place, check=until(1), stale_seconds=0.1):
        pass
    holder.send_signal(signal.SIGCONT)


def test_a_pid_that_came_back_is_another_process(place: Path) -> None:
    owner = replace(Owner.current(), start=1)
    place.mkdir(parents=True)
    (place / str(owner)).touch()
    with locked(place, check=until(20)):
        pass


def test_another_machines_lock_is_broken_without_renewals(place: Path) -> None:
    owner = replace(Owner.current(), host="elsewhere", machine="another.1")
    place.mkdir(parents=True)
    file = place / str(owner)
    file.touch()
    end = threading.Event()

    def renew() -> None:
        while not end.wait(0.1):
            os.utime(file)

    renewal = threading.Thread(target=renew)
    renewal.start()
    with pytest.raises(TimeUpError), locked(place, check=until(3), stale_seconds=2):
        pass
    end.set()
    renewal.join()
    started = time.monotonic()
    with locked(place, check=until(20), stale_seconds=2):
        assert time.monotonic() - started >= 2


def test_an_owner_renews(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with locked(place):
        (file,) = place.iterdir()
        os.utime(file, (0, 0))
        check = until(20)
        while file.stat().st_mtime == 0:
            check()
            time.sleep(0.01)


def test_one_at_a_time(place: Path, tmp_path: Path) -> None:
    counter = tmp_path / "counter"
    counter.write_text("0")
    command = [sys.executable, "-c", COUNT, str(place), str(counter)]
    processes = [subprocess.Popen(command) for _ in range(4)]
    assert [process.wait(120) for process in processes] == [0] * 4
    assert counter.read_text() == "80"


def test_one_thread_at_a_time_after_a_death(
    place: Path, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many see the same stale lock at once; breaking it must not break the next owner's."""
    monkeypatch.setattr(lock, "LOOK_SECONDS", 0.001)
    holder.kill()
    holder.wait()
    inside: list[int] = []

    def enter(number: int) -> int:
        with locked(place, check=until(60)):
            inside.append(number)
            alone = inside == [number]
            time.sleep(0.002)
            inside.remove(number)
        return alone

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(enter, range(64)))


def test_what_is_no_lock_is_left_alone(place: Path) -> None:
    place.mkdir(parents=True)
    (place / "precious").touch()
    with pytest.raises(InfraError, match="no owner of a lock writes"), locked(place):
        pass
    assert (place / "precious").exists()
    (place.parent / "file").touch()
    with pytest.raises(InfraError, match="cannot be taken"), locked(place.parent / "file"):
        pass


def test_scratch_folders_of_the_dead_are_removed(tmp_path: Path) -> None:
    dead = tmp_path / str(replace(Owner.current(), start=1))
    remote = tmp_path / str(replace(Owner.current(), machine="another.1"))
    old_remote = tmp_path / str(replace(Owner.current(), machine="another.2"))
    for folder in (dead, remote, old_remote, tmp_path / "storage123"):
        folder.mkdir()
        (folder / "data").touch()
    age = time.time() - REMOTE_SECONDS - 1
    os.utime(old_remote, (age, age))
    with scratch(tmp_path) as one, scratch(tmp_path) as two:
        (one / "data").touch()
        assert {*tmp_path.iterdir()} == {one, two, remote, tmp_path / "storage123"}
        sweep(tmp_path)
        assert (one / "data").exists()
    assert {*tmp_path.iterdir()} == {remote, tmp_path / "storage123"}
