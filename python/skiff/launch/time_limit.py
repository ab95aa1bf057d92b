"""How a trainer ends before its job's time limit: saved if its step ends in time, in order anyway.

The job's script asks for it (skiff.train.save_request) slurm.signal_seconds before the limit; the
trainer ends by itself once it has saved. A part of the time is kept for the end of both halves.
"""

from __future__ import annotations

import time

from skiff.config.slurm import Slurm
from skiff.launch.local import Halves
from skiff.train import resume
from skiff.train.save_request import request_file

END_SECONDS = 60.0  # for the end in order, or half of a shorter time


class TimeLimit:
    """Call `passed` often."""

    def __init__(self, halves: Halves) -> None:
        seconds = (halves.config.slurm or Slurm()).signal_seconds
        self._seconds = max(seconds - END_SECONDS, seconds / 2)
        self._run_dir = halves.run_dir
        self._request = request_file(halves.run_dir, halves.attempt)
        self._asked: float | None = None
        self._passed = False

    def passed(self) -> bool:
        """Whether the trainer was asked to save and the time for that is over."""
        if self._asked is None and self._request.exists():
            self._asked = time.monotonic()
        if self._asked is not None:
            self._passed = time.monotonic() > self._asked + self._seconds
        return self._passed

    def reason(self) -> str:
        """What became of it."""
        step = resume.newest(self._run_dir)
        place = f"the checkpoint of step {step}" if step else "the start"
        if self._passed:
            return (
                f"the time limit came before the step could be saved within {self._seconds:g} s"
                f" (slurm.signal_seconds): goes on from {place}"
            )
        return f"saved before the time limit: goes on from {place}"
