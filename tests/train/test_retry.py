"""What passes is tried again, so often; what does not pass ends the run at once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.errors import ConfigError, InfraError, SkiffError
from skiff.train import retry
from skiff.train.retry import BACK_OFF, TransientError, with_retries

PASSES = TransientError("a peer is lost", why="it comes back")


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds: list[float] = []
    monkeypatch.setattr(retry.time, "sleep", seconds.append)
    return seconds


def failing(*outcomes: Exception | int) -> Callable[[int], int]:
    """Raises or returns one after the other."""

    def work(number: int) -> int:
        outcome = outcomes[number - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return work


def test_it_is_tried_again_and_told(tmp_path: Path, slept: list[float]) -> None:
    stale = OSError(116, "Stale file handle")
    absent = InfraError("no runtime server appeared within 120 s", where="x")
    assert with_retries(tmp_path, failing(PASSES, stale, absent, 75), lambda: 0) == 75
    assert slept == list(BACK_OFF)
    told = list(events.read(tmp_path, "retry"))
    assert [event["number"] for event in told] == [1, 2, 3]
    assert told[0]["what"] == "a peer is lost; tried again in 10 s, because it comes back"


def test_it_ends_with_the_last_failure(tmp_path: Path, slept: list[float]) -> None:
    with pytest.raises(TransientError):
        with_retries(tmp_path, failing(*[PASSES] * 9), lambda: 0)
    assert slept == list(BACK_OFF)


def test_a_checkpoint_in_between_begins_the_count_anew(tmp_path: Path, slept: list[float]) -> None:
    steps = iter([0, 0, 0, 3, 3, *[3] * 20])
    assert with_retries(tmp_path, failing(*[PASSES] * 5, 0), lambda: next(steps)) == 0
    assert len(slept) == 5


@pytest.mark.parametrize(
    "error",
    [
        ConfigError("model.path is wrong"),
        InfraError("the disk is full (No space left on device)"),
        InfraError("the GPU ran out of memory: CUDA out of memory"),
        OSError(28, "No space left on device"),
        OSError(13, "Permission denied"),
    ],
)
def test_what_does_not_pass_ends_the_run(
    tmp_path: Path, slept: list[float], error: Exception
) -> None:
    with pytest.raises(SkiffError):
        with_retries(tmp_path, failing(error, 0), lambda: 0)
    assert slept == []
    assert list(events.read(tmp_path)) == []
