"""How a trainer is asked to save and end, as before a job's time limit.

Whoever asks makes the file `request_file`. verl then saves at the end of its step (checkpoint.py),
and the trainer ends with the exit status SAVED once that checkpoint is published and the step's
metrics are written. Not covered: a bound in time. Who has asked ends the trainer at his deadline.
"""

from __future__ import annotations

import os
from pathlib import Path

from skiff.attempts import meeting_folder

NAME = "save"
VARIABLE = "SKIFF_SAVE_REQUEST"  # the file's path, for verl's processes
SAVED = os.EX_TEMPFAIL  # exit status: saved, and to be gone on with


def request_file(run_dir: Path, attempt: int) -> Path:
    """The file of one attempt."""
    return meeting_folder(run_dir, attempt) / NAME


class SaveRequest:
    """Tells when a request has been carried out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._since: int | None = None  # the newest logged step when the request was seen

    def carried_out(self, *, logged: int, published: int) -> bool:
        """`logged` is the newest step with metrics, `published` that of the newest checkpoint.

        What was published before counts only as it is: the step in progress is waited for.
        """
        if self._since is None:
            if not self._file.exists():
                return False
            self._since = logged
        return published > self._since and logged >= published
