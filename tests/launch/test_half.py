"""One half on its node: how it ends, and what it says of that. tests/slurm has Slurm start it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.config.load import write_config
from skiff.errors import InfraError
from skiff.launch import half, local, run_folder
from skiff.launch.half import EndedElsewhereError, run_half
from skiff.launch.leases import LostError
from skiff.launch.progress import read_progress

Entrypoints = Callable[..., Path]
Story = Callable[[], list[str]]
WAIT = 'on_term("train ends")\ntell("train starts")\ntime.sleep(600)\n'


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(half, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(half, "BUILT_HERE", ())  # no image is needed
    monkeypatch.setenv("SLURMD_NODENAME", "node7")


@pytest.fixture
def end_when(run_dir: Path) -> Iterator[Callable[[Callable[[], bool]], None]]:
    """`end_when(condition)`: asks both halves of attempt 1 to end as soon as it holds."""
    threads = []

    def call(condition: Callable[[], bool]) -> None:
        def ask() -> None:
            deadline = time.monotonic() + 30
            while not condition() and time.monotonic() < deadline:
                time.sleep(0.02)
            (run_folder.meeting(run_dir, 1) / run_folder.END).touch()

        threads.append(threading.Thread(target=ask))
        threads[-1].start()

    yield call
    for thread in threads:
        thread.join()


def finished(run_dir: Path) -> tuple[int, str]:
    [event] = events.read(run_dir, "finished")
    return event["exit_code"], event["reason"]


@pytest.mark.parametrize(
    ("train", "code", "reason"),
    [
        ("", 0, "done"),
        ('print("error: no model", file=sys.stderr); sys.exit(2)', 2, "no model"),
        ("os.kill(os.getpid(), 15)", 143, "exit code 143"),
    ],
)
def test_a_trainer_ends_with_its_exit_code_and_a_report(
    run_dir: Path, entrypoints: Entrypoints, train: str, code: int, reason: str
) -> None:
    assert run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(train)) == code
    assert finished(run_dir) == (code, reason)
    assert (run_dir / "report.html").exists()
    assert (run_dir / "logs" / "train-node7.01.log").exists()


def test_a_trainer_ends_in_order_when_asked(
    run_dir: Path,
    entrypoints: Entrypoints,
    story: Story,
    end_when: Callable[[Callable[[], bool]], None],
) -> None:
    end_when(lambda: "train starts" in story())
    with pytest.raises(KeyboardInterrupt):
        run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(WAIT))
    assert story() == ["train starts", "train ends"]
    assert finished(run_dir) == (130, "interrupted")


def test_a_trainer_that_cannot_be_started_says_why(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise InfraError("apptainer is not installed")

    monkeypatch.setattr(local.Halves, "start", refuse)
    with pytest.raises(InfraError):
        run_half("train", run_dir, 1, alone=True)
    assert finished(run_dir) == (3, "apptainer is not installed")


def test_a_server_ends_well_when_asked(
    run_dir: Path,
    entrypoints: Entrypoints,
    story: Story,
    end_when: Callable[[Callable[[], bool]], None],
) -> None:
    end_when(lambda: any(run_dir.glob("rendezvous/01/runtime-*.json")))
    assert run_half("runtime", run_dir, 1, entrypoints=entrypoints("")) == 0
    assert story() == ["runtime starts None", "runtime ends"]


def test_a_server_alone_is_a_run_that_begins_and_ends(
    run_dir: Path, entrypoints: Entrypoints, end_when: Callable[[Callable[[], bool]], None]
) -> None:
    states = []

    def serves() -> bool:
        states.append(read_progress(run_dir).state)
        return any(run_dir.glob("rendezvous/01/runtime-*.json"))

    end_when(serves)
    assert run_half("runtime", run_dir, 1, alone=True, entrypoints=entrypoints("")) == 0
    assert states[-1] == "running"
    assert read_progress(run_dir).state == "paused"


def test_a_server_alone_that_dies_is_a_run_that_failed(
    run_dir: Path, entrypoints: Entrypoints
) -> None:
    with pytest.raises(InfraError, match="ended with exit code 4"):
        run_half("runtime", run_dir, 1, alone=True, entrypoints=entrypoints("", "sys.exit(4)"))
    assert read_progress(run_dir).state == "failed (3)"


def test_a_server_is_started_again_so_often(
    run_dir: Path, entrypoints: Entrypoints, story: Story
) -> None:
    dies = 'tell(f"runtime {options.port}"); publish(); time.sleep(0.1); sys.exit(4)'
    with pytest.raises(InfraError, match="exit code 4 after 3 restarts"):
        run_half("runtime", run_dir, 1, entrypoints=entrypoints("", dies))
    assert story() == ["runtime None", *["runtime 4321"] * local.RESTARTS]


def test_a_trainer_that_somebody_has_killed_is_lost(
    run_dir: Path, entrypoints: Entrypoints
) -> None:
    with pytest.raises(LostError, match="killed by SIGKILL"):
        run_half(
            "train", run_dir, 1, alone=True, entrypoints=entrypoints("os.kill(os.getpid(), 9)")
        )


def test_an_earlier_attempt_is_not_looked_at(run_dir: Path, entrypoints: Entrypoints) -> None:
    (run_folder.meeting(run_dir, 1) / run_folder.END).touch()
    train = 'tell(rendezvous.parent.name); sys.exit(0 if options.attempt == "2" else 1)'
    assert run_half("train", run_dir, 2, alone=True, entrypoints=entrypoints(train)) == 0
    assert (run_dir / "story").read_text() == "02\n"
    assert (run_dir / "attempts" / "02").is_dir()


def test_the_cause_elsewhere_is_ours(run_dir: Path, entrypoints: Entrypoints) -> None:
    end = run_folder.meeting(run_dir, 1) / run_folder.END
    end.write_text("4\nruntime half on cpu7: no disk\n")
    with pytest.raises(EndedElsewhereError, match="runtime half on cpu7: no disk") as caught:
        run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(WAIT))
    assert caught.value.exit_code == 4
    assert finished(run_dir) == (4, "runtime half on cpu7: no disk")


def test_a_server_ends_well_whatever_the_trainer_has(
    run_dir: Path, entrypoints: Entrypoints
) -> None:
    (run_folder.meeting(run_dir, 1) / run_folder.END).write_text("2\nno model\n")
    assert run_half("runtime", run_dir, 1, entrypoints=entrypoints("")) == 0


def test_a_partner_that_does_not_come_ends_a_half(
    run_dir: Path, entrypoints: Entrypoints, runtime_config: Callable[..., Config]
) -> None:
    config = runtime_config(
        runtime={"host": "0.0.0.0"},
        hardware={"platform": "cpu", "dtype": "float32"},
        slurm={"wait_seconds": 0.3},
    )
    write_config(config, run_dir / run_folder.CONFIG)
    with pytest.raises(InfraError, match=r"train half: 0 of 1 nodes have appeared within 0\.3 s"):
        run_half("runtime", run_dir, 1, entrypoints=entrypoints(""))
    assert not list(run_dir.glob("rendezvous/01/lease-*"))


def test_a_further_node_of_the_trainer_ends_with_the_first(
    run_dir: Path,
    entrypoints: Entrypoints,
    story: Story,
    monkeypatch: pytest.MonkeyPatch,
    end_when: Callable[[Callable[[], bool]], None],
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    train = WAIT.replace('tell("train starts")', 'tell(f"node {options.node}")')
    end_when(lambda: "node 1" in story())
    assert run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(train)) == 0
    assert story() == ["node 1", "train ends"]
    assert list(events.read(run_dir, "finished")) == []


def test_a_further_node_that_fails_is_named(
    run_dir: Path, entrypoints: Entrypoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    train = 'print("error: no Ray here", file=sys.stderr); sys.exit(3)'
    with pytest.raises(InfraError, match="node 1 of the trainer: no Ray here"):
        run_half("train", run_dir, 1, alone=True, entrypoints=entrypoints(train))
