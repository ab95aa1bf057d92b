"""Which checkpoint is whole, and which one a resumed run starts from.

verl writes `global_step_N/` piece by piece and its tracker file last, by a plain open and write: a
kill in between leaves a torn folder, or an empty tracker that makes verl's resume raise. So
checkpoint.py marks a finished checkpoint by an atomic write, and `settle` makes the tracker name
the newest marked one before each start. Not covered: checksums of the shards.
"""

from __future__ import annotations

import re
from pathlib import Path

from skiff.files import write_atomic

MARKER = "skiff-complete"
TRACKER = "latest_checkpointed_iteration.txt"


def complete_steps(folder: Path) -> list[int]:
    """Steps of the marked checkpoints below `folder`, ascending.

    verl removes an old checkpoint's weights, but not its folder with the mark in it.
    """
    steps = []
    for entry in folder.glob("global_step_*"):
        match = re.fullmatch(r"global_step_(\d+)", entry.name)
        if match and (entry / MARKER).exists() and (entry / "actor").exists():
            steps.append(int(match[1]))
    return sorted(steps)


def settle(folder: Path) -> int:
    """Point verl's tracker at the newest whole checkpoint; returns its step, 0 without any."""
    steps = complete_steps(folder)
    tracker = folder / TRACKER
    if not steps:
        tracker.unlink(missing_ok=True)
        return 0
    write_atomic(tracker, str(steps[-1]))
    return steps[-1]
