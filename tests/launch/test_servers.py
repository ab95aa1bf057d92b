"""Which published servers are believed, against a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import events
from skiff.errors import InfraError
from skiff.launch import run_folder, servers
from skiff.launch.sbatch import Shape
from skiff.launch.servers import Servers
from skiff.launch.submit import note_jobs

Publish = Callable[..., Path]


@pytest.fixture
def meeting(run_dir: Path) -> Path:
    note_jobs(run_dir / "attempts" / "01", {Shape.HET: "17"})
    return run_folder.meeting(run_dir, 1)


@pytest.fixture
def publish(meeting: Path, runtime_server: Any) -> Publish:
    """`publish(name, job=..., nonce=...)`: the real server's file, with other values."""

    def call(name: str = "here", **changed: object) -> Path:
        place = {**runtime_server.place, "job": "17", "attempt": 1, **changed}
        path = meeting / f"runtime-{name}.json"
        path.write_text(json.dumps(place))
        return path

    return call


def test_a_server_of_this_attempt_is_believed(
    run_dir: Path, meeting: Path, publish: Publish
) -> None:
    found = Servers(run_dir, meeting, 1)
    assert not found.ready()
    path = publish()
    assert found.ready()
    assert path.exists()


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"job": "9"}, "is of attempt 1, job 9"),
        ({"attempt": 4}, "is of attempt 4, job 17"),
        ({"nonce": "0123"}, "where another server answers"),
    ],
)
def test_a_stale_one_is_set_aside_with_a_sentence(
    run_dir: Path,
    meeting: Path,
    publish: Publish,
    capsys: pytest.CaptureFixture[str],
    changed: dict[str, object],
    why: str,
) -> None:
    stale, good = publish("old", **changed), publish("zz")
    assert Servers(run_dir, meeting, 1).ready()
    assert good.exists()
    assert not stale.exists()
    [event] = events.read(run_dir, "stale")
    assert why in event["what"]
    assert "runtime-old.json" in event["what"]
    assert event["what"] in capsys.readouterr().err


def test_another_program_at_the_port_is_no_server(
    run_dir: Path, meeting: Path, publish: Publish, runtime_server: Any
) -> None:
    publish(url=f"{runtime_server.url}/nothing-here")
    assert not Servers(run_dir, meeting, 1).ready()
    assert list(meeting.glob("*.json")) == []


def test_a_server_that_cannot_be_reached_is_named(
    run_dir: Path, meeting: Path, publish: Publish, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(url="http://127.0.0.1:1")
    found = Servers(run_dir, meeting, 1)
    assert not found.ready()
    monkeypatch.setattr(servers, "REACH_SECONDS", 0.0)
    with pytest.raises(InfraError) as caught:
        found.ready()
    assert "runtime server http://127.0.0.1:1 of job 17" in caught.value.where
    assert "does not answer" in caught.value.what
