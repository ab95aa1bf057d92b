"""Which checkpoint a run goes on from: the newest one that is as it was saved.

verl writes `global_step_N/` piece by piece and its tracker file last, by a plain open and write: a
kill in between leaves a torn folder, or an empty tracker that makes verl's resume raise. `settle`
clears that up before each start. Nothing may write checkpoints of the run meanwhile.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from skiff import events
from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.train import manifest

TRACKER = "latest_checkpointed_iteration.txt"


def checkpoint(folder: Path, step: int) -> Path:
    """The folder of one step's checkpoint below `folder`."""
    return folder / f"global_step_{step}"


def saved_steps(folder: Path) -> list[int]:
    """Steps of all checkpoints below `folder`, torn ones too, ascending."""
    matches = (re.fullmatch(r"global_step_(\d+)", entry.name) for entry in folder.glob("global_*"))
    return sorted(int(match[1]) for match in matches if match)


def complete_steps(folder: Path) -> list[int]:
    """Steps of the checkpoints that were saved to their end, ascending."""
    return [
        step for step in saved_steps(folder) if (checkpoint(folder, step) / manifest.NAME).exists()
    ]


def newest(run_dir: Path) -> int:
    """The newest step that was saved to its end, 0 without any."""
    return max(complete_steps(run_dir / "ckpt"), default=0)


def settle(run_dir: Path) -> int:
    """Point verl's tracker at the newest whole checkpoint; returns its step, 0 without any.

    Newer ones are damaged or torn. Each is told by an event; a damaged one is kept under another
    name, a torn one is removed, also where it is older. Raises InfraError when one cannot be read.
    """
    folder = run_dir / "ckpt"
    whole = 0
    for step in reversed(saved_steps(folder)):
        place = checkpoint(folder, step)
        if whole and (place / manifest.NAME).exists():
            continue
        try:
            wrong = manifest.fault(place)
        except OSError as error:
            raise InfraError(f"cannot be read: {error}", where=str(place)) from error
        if not wrong:
            whole = step
            continue
        what = f"the checkpoint of step {step} is not used: {wrong}"
        events.emit(run_dir, "checkpoint_skipped", step=step, what=what)
        print(what, flush=True)
        _set_aside(place)
    tracker = folder / TRACKER
    if whole:
        write_atomic(tracker, str(whole))
    else:
        tracker.unlink(missing_ok=True)
    return whole


def _set_aside(place: Path) -> None:
    if not (place / manifest.NAME).exists():
        shutil.rmtree(place)
        return
    damaged = place.with_name(f"damaged_{place.name}")
    if damaged.exists():
        shutil.rmtree(damaged)
    place.rename(damaged)


def retire(folder: Path, keep: int) -> None:
    """Remove what is older than the newest complete checkpoint, but for the newest `keep` complete
    ones. Raises OSError."""
    kept = complete_steps(folder)[-keep:]
    for step in saved_steps(folder):
        if step not in kept and step < max(kept, default=0):
            place = checkpoint(folder, step)
            # First: what is half removed must not look whole.
            (place / manifest.NAME).unlink(missing_ok=True)
            shutil.rmtree(place)
