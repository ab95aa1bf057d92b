"""Why verl ended: the sentence in its log that a person should read first.

verl's logs carry the same failure through several Ray tracebacks; the cause is the first of the
known patterns below, else the last line. Not covered: diagnosis across both halves of a run.
"""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 1 << 20

# (pattern, sentence); \1 and so on are the pattern's groups. The first that is found wins.
CAUSES = (
    (r"skiff\.errors\.\w+: (.+)", r"\1"),
    (r"No space left on device", "the disk is full (No space left on device)"),
    (r"CUDA out of memory", "the GPU ran out of memory: lower hardware.micro_batch or context"),
    (
        r"(?:OutOfMemoryError|ray\.exceptions\.OutOfMemory)",
        "Ray ended a worker: host memory is used up",
    ),
    (
        r"The current node timed out during startup",
        "Ray did not come up in time: the machine is overloaded; start the run again",
    ),
    (r"Could not override '(.+?)'", r"this verl does not know the setting \1"),
    (r"^(\w*(?:Error|Exception): .+)$", r"\1"),
)


def cause_of(log: Path) -> str:
    """One sentence; names the log when it says nothing."""
    text = _tail(log)
    for pattern, sentence in CAUSES:
        match = re.search(pattern, text, re.MULTILINE)
        if match:
            return match.expand(sentence).strip()
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1].strip() if lines else "it wrote no log"


def _tail(log: Path) -> str:
    if not log.exists():
        return ""
    with log.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(0, size - TAIL_BYTES))
        text = file.read().decode(errors="replace")
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text)
    return re.sub(r"^\([^)]*pid=[^)]*\) ?", "", plain, flags=re.MULTILINE)
