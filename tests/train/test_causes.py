"""The first sentence that a person should read when verl has ended."""

from __future__ import annotations

from pathlib import Path

import pytest
from skiff.train.causes import TAIL_BYTES, cause_of

TRACEBACK = "Traceback (most recent call last):\n  File 'x.py', line 1, in f\n"


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "verl.log"


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        (
            "noise\n\x1b[36m(Worker pid=7, ip=10.0.0.1)\x1b[0m skiff.errors.InfraError: "
            "step 3: 5 of 8 trajectories failed\n  -> see\nRuntimeError: later\n",
            "step 3: 5 of 8 trajectories failed",
        ),
        (
            "OSError: [Errno 28] No space left on device\nRuntimeError: later\n",
            "the disk is full (No space left on device)",
        ),
        (
            "ray.exceptions.OutOfMemoryError: Task was killed\n",
            "Ray ended a worker: host memory is used up",
        ),
        (
            "Could not override 'actor.foo'.\nKey 'foo' is not in struct\n",
            "this verl does not know the setting actor.foo",
        ),
        (
            f"\x1b[36m(TaskRunner pid=12)\x1b[0m {TRACEBACK}"
            "\x1b[36m(TaskRunner pid=12)\x1b[0m ValueError: first\nKeyError: 'second'\n",
            "ValueError: first",
        ),
        ("starting\nKilled\n\n", "Killed"),
        ("", "it wrote no log"),
    ],
)
def test_cause(log: Path, text: str, cause: str) -> None:
    log.write_text(text)
    assert cause_of(log) == cause


def test_no_log_at_all(log: Path) -> None:
    assert cause_of(log) == "it wrote no log"


def test_the_end_of_a_long_log_is_read(log: Path) -> None:
    log.write_bytes(b"ValueError: old\n" + b"\xff" * TAIL_BYTES + b"\nKeyError: 'new'\n")
    assert cause_of(log) == "KeyError: 'new'"
