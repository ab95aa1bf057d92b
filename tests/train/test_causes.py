"""The first sentence that a person should read when verl has ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from skiff.train.causes import CAUSES, TAIL_BYTES, cause_of, failure_of

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


# One log for each row of the table, with the noise in which it comes.
PASSES = (
    "RuntimeError: The current node timed out during startup. This could happen because ...",
    "rpc_client: Failed to connect to GCS at address 10.0.0.1:6379 within 5 seconds.",
    "Exception: No node info found for head node in GCS. Did the head node or gcs start ...?",
    "runtime: no runtime server appeared within 120 s",
    "skiff.errors.InfraError: step 4: all 8 trajectories failed for infrastructure reasons",
    "skiff.errors.InfraError: 3 prompts have no result although every trajectory's deadline ...",
    "[rank3]:[E1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=9)",
    "torch.distributed.DistBackendError: NCCL error, ncclRemoteError: A call failed possibly ...",
    "torch.distributed.DistNetworkError: The client socket has timed out after 600000ms",
    "OSError: [Errno 116] Stale file handle: '/scratch/run/ckpt/global_step_4'",
    "socket.gaierror: [Errno -3] Temporary failure in name resolution",
)
LASTS = (
    "OSError: [Errno 28] No space left on device",
    "OSError: [Errno 122] Disk quota exceeded: 'model.pt'",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB",
    "ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory",
    "Could not override 'actor.foo'.",
    "skiff.errors.ConfigError: the key is refused",
    "skiff.errors.InfraError: step 3: 5 of 8 trajectories failed, more than ... allows",
    "ValueError: shapes differ",
)


def row_of(text: str) -> int:
    sentence_and_retry = failure_of(text)
    return next(
        number
        for number, cause in enumerate(CAUSES)
        if (match := re.search(cause.pattern, text, re.MULTILINE))
        and match.expand(cause.sentence).strip() == sentence_and_retry.sentence
    )


def test_each_row_is_met_and_tells_what_may_pass() -> None:
    assert all(failure_of(text).retry for text in PASSES)
    assert not any(failure_of(text).retry for text in LASTS)
    assert {row_of(text) for text in (*PASSES, *LASTS)} == set(range(len(CAUSES)))


@pytest.mark.parametrize("last", LASTS[:6])
@pytest.mark.parametrize("passes", PASSES)
def test_what_no_retry_can_mend_wins(last: str, passes: str) -> None:
    assert failure_of(f"{passes}\n{last}\n") == failure_of(last)


def test_an_unknown_last_line_is_not_tried_again() -> None:
    assert failure_of("it ends\nsomehow\n").retry == ""
