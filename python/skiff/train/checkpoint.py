"""verl's checkpoint callback: says that a save is done, and has verl save when that is asked for.

It runs in verl's driver. The checkpoint is published by publish.py, in the process that has
started verl, so that training does not wait for hashes.
"""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from skiff.files import write_atomic
from skiff.train.publish import SAVED
from skiff.train.save_request import VARIABLE

POLL_SECONDS = 1.0  # each look is a call to the shared file system


class SaveHook(CheckpointCallback):
    """verl's `trainer.checkpoint_callback_class`."""

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        request = Path(os.environ[VARIABLE])
        threading.Thread(target=self._wait_for, args=(request,), daemon=True).start()

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **kwargs: Any) -> None:
        write_atomic(Path(checkpoint_dir) / SAVED, f"{global_step}\n")

    def _wait_for(self, request: Path) -> None:
        """verl reads its save frequency anew at the end of each step."""
        while not request.exists():
            time.sleep(POLL_SECONDS)
        self.config.trainer.save_freq = 1
