"""Why verl ended: the sentence in its log that a person should read first, and whether it is worth
trying again.

verl's logs carry the same failure through several Ray tracebacks; the cause is the first of the
known patterns below, else the last line. A rank that fails makes its peers lose a connection, so
what no retry can mend stands before what one may. Not covered: diagnosis across both halves.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

TAIL_BYTES = 1 << 20


@dataclass(frozen=True)
class Cause:
    r"""A known failure.

    pattern   what the log says, a regular expression
    sentence  what that means; \1 and so on are the pattern's groups
    retry     why another try may go well; "" when it will not
    """

    pattern: str
    sentence: str
    retry: str = ""


CAUSES = (
    Cause(r"No space left on device", "the disk is full (No space left on device)"),
    Cause(r"Disk quota exceeded", "the disk quota is used up (Disk quota exceeded)"),
    Cause(
        r"CUDA out of memory",
        "the GPU ran out of memory: lower hardware.micro_batch or context",
    ),
    Cause(
        r"(?:OutOfMemoryError|ray\.exceptions\.OutOfMemory)",
        "Ray ended a worker: host memory is used up",
    ),
    Cause(r"Could not override '(.+?)'", r"this verl does not know the setting \1"),
    Cause(r"skiff\.errors\.(?:ConfigError|TaskError|ImageError): (.+)", r"\1"),
    Cause(
        r"The current node timed out during startup",
        "Ray did not come up in time: the machine is overloaded; start the run again",
        retry="the load of a shared machine passes",
    ),
    Cause(
        r"(?i)(?:failed|unable) to connect to (?:the )?GCS|No node info found for head node in GCS",
        "Ray's head did not answer",
        retry="a busy head answers late",
    ),
    Cause(
        r"(no runtime server appeared within .*|is not running: there is no server|"
        r"no runtime server has published itself)",
        r"\1",
        retry="a server that has died is started again",
    ),
    Cause(
        r"(all \d+ trajectories failed for infrastructure .*)",
        r"\1",
        retry="they fail together when the runtime server is away",
    ),
    Cause(
        r"(\d+ prompts have no result .*)",
        r"\1",
        retry="a dead agent worker is a new one in the next try",
    ),
    Cause(r"skiff\.errors\.\w+: (.+)", r"\1"),
    Cause(
        r"Watchdog caught collective operation timeout",
        "NCCL: a collective operation timed out",
        retry="a peer or the network stalled",
    ),
    Cause(
        r"(ncclRemoteError|ncclSystemError)",
        r"NCCL lost a peer (\1)",
        retry="the network or the peer failed, not this program",
    ),
    Cause(
        r"(DistNetworkError: .*|(?:Gloo|gloo).*(?:timed out|[Tt]imeout|closed by peer).*)",
        r"\1",
        retry="the network or the peer failed, not this program",
    ),
    Cause(
        r"Stale file handle",
        "the shared file system has forgotten an open file (Stale file handle)",
        retry="a new process opens it anew",
    ),
    Cause(
        r"Temporary failure in name resolution",
        "a host name was not resolved (Temporary failure in name resolution)",
        retry="as the error says, it is temporary",
    ),
    Cause(r"^(\w*(?:Error|Exception): .+)$", r"\1"),
)


@dataclass(frozen=True)
class Failure:
    """A sentence, and why another try may go well; "" when it will not."""

    sentence: str
    retry: str


def failure_of(text: str) -> Failure:
    """What a text says went wrong; its last line when no pattern is known."""
    for cause in CAUSES:
        match = re.search(cause.pattern, text, re.MULTILINE)
        if match:
            return Failure(match.expand(cause.sentence).strip(), cause.retry)
    lines = [line for line in text.splitlines() if line.strip()]
    return Failure(lines[-1].strip() if lines else "it wrote no log", "")


def failure_in(log: Path) -> Failure:
    """What the end of a log says went wrong."""
    return failure_of(_tail(log))


def cause_of(log: Path) -> str:
    """What the end of a log says went wrong, in one sentence."""
    return failure_in(log).sentence


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"^\([^)]*pid=[^)]*\) ?", "", plain, flags=re.MULTILINE)
