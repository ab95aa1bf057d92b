"""verl's checkpoint callback: mark a finished checkpoint and say so. See resume.py for why."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from verl.trainer.ppo.checkpoint_callback import CheckpointCallback

from skiff import events
from skiff.files import write_atomic
from skiff.train.resume import MARKER


class PublishCheckpoint(CheckpointCallback):
    """verl's `trainer.checkpoint_callback_class`: mark a finished checkpoint and say so."""

    def on_save(self, trainer: Any, global_step: int, checkpoint_dir: str, **kwargs: Any) -> None:
        write_atomic(Path(checkpoint_dir) / MARKER, f"{global_step}\n")
        events.emit(
            Path(os.environ["SKIFF_RUN"]), "checkpoint", step=global_step, path=checkpoint_dir
        )
