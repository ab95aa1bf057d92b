"""Checkpoints that verl has saved are published by a manifest, in a thread beside the training.

Old ones are removed only then. A trainer that is killed between a save and its publication loses
that checkpoint: it goes on from the one before.
"""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from skiff import events
from skiff.errors import InfraError
from skiff.train import manifest
from skiff.train.resume import checkpoint, retire, saved_steps

SAVED = "skiff-saved"  # verl's driver writes it when all ranks have saved


class Publisher:
    """Call `look` often. Leaving its `with` block waits for what it has found.

    Both raise InfraError when a checkpoint cannot be read or its manifest not be written.
    """

    def __init__(self, run_dir: Path, *, keep: int, newest: int) -> None:
        self._run_dir = run_dir
        self._folder = run_dir / "ckpt"
        self._keep = keep
        self._pool = ThreadPoolExecutor(1)
        self._work: Future[int] | None = None
        self.newest = newest  # step of the newest published checkpoint

    def look(self) -> None:
        """Begin with the newest one that was saved since, unless one is still being worked on.

        One that was overtaken meanwhile is not published: what comes in faster than it is hashed
        must not fill the disk.
        """
        if self._work is not None and self._work.done():
            work, self._work = self._work, None
            try:
                self.newest = work.result()
            except OSError as error:
                raise InfraError(
                    f"a checkpoint was not published: {error}", where=str(self._folder)
                ) from error
        if self._work is None:
            for step in reversed(saved_steps(self._folder)):
                if step <= self.newest:
                    return
                if (checkpoint(self._folder, step) / SAVED).exists():
                    self._work = self._pool.submit(self._publish, step)
                    return

    def _publish(self, step: int) -> int:
        begun = time.monotonic()
        place = checkpoint(self._folder, step)
        size = manifest.write_manifest(place).size
        seconds = round(time.monotonic() - begun, 2)
        events.emit(
            self._run_dir, "checkpoint", step=step, path=str(place), bytes=size, seconds=seconds
        )
        retire(self._folder, self._keep)
        return step

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self.look()
            while self._work is not None:
                self._work.exception()  # waits
                self.look()
        finally:
            self._pool.shutdown()
