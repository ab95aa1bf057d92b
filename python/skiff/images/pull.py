"""`skiff images pull`: many images at once, each by one puller only, within a disk limit.

A failure that may pass is tried again with growing pauses; a missing image is not. Of several
pullers of an image, on one node or with a shared store on several, one pulls and the others wait.
"""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeElapsedColumn

from skiff.errors import ImageError, InfraError, SkiffError
from skiff.image_use import file_name, full_name, mark_used
from skiff.images.lock import locked
from skiff.images.prune import DiskLimit
from skiff.images.store import Store, find

ATTEMPTS = 4
PAUSE_SECONDS = 5.0  # before the second attempt; doubled before each further one


@dataclass(frozen=True)
class Outcome:
    """What became of one image. `error` is empty unless it could not be had."""

    name: str
    pulled: bool
    error: str = ""


class _EndedError(Exception):
    """The user has ended the pull."""


@dataclass(frozen=True)
class Puller:
    """How images are pulled into `store`.

    max_bytes      what the store may hold; images that are not wanted make room
    pause_seconds  before a second attempt
    """

    store: Store
    concurrency: int = 4
    max_bytes: int | None = None
    attempts: int = ATTEMPTS
    pause_seconds: float = PAUSE_SECONDS

    def pull(
        self, names: Sequence[str], on_done: Callable[[Outcome], None] = lambda _: None
    ) -> list[Outcome]:
        """Pull what is absent. An image that cannot be had is an outcome and does not stop the
        others. `on_done` is called as each one ends."""
        names = list(dict.fromkeys(names))
        limit = DiskLimit(self.store, self.max_bytes, names)
        images = self.store.images()
        present = {name for name in names if any(image.is_called(name) for image in images)}
        end = threading.Event()

        def check() -> None:
            if end.is_set():
                raise _EndedError
            limit.check()

        def one(name: str) -> Outcome:
            return Outcome(name, False) if name in present else self._pull_one(name, check, end)

        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="pull")
        outcomes = []
        try:
            for future in as_completed([pool.submit(one, name) for name in names]):
                outcomes.append(future.result())
                on_done(outcomes[-1])
        finally:
            end.set()
            pool.shutdown(cancel_futures=True)
        return outcomes

    def _pull_one(self, name: str, check: Callable[[], None], end: threading.Event) -> Outcome:
        lock = self.store.folder / "locks" / f"pull-{file_name(full_name(name))}"
        try:
            with locked(lock, check=lambda: _stop(end)):
                if find(self.store, name) is not None:
                    return Outcome(name, False)
                self._attempt(name, check, end)
        except (SkiffError, OSError) as error:  # OSError: the disk is full, or not ours
            return Outcome(name, False, str(error))
        return Outcome(name, True)

    def _attempt(self, name: str, check: Callable[[], None], end: threading.Event) -> None:
        for attempt in range(1, self.attempts + 1):
            check()
            try:
                self.store.pull(name, check)
                break
            except InfraError:
                if attempt == self.attempts:
                    raise
            # Spread: hundreds of nodes that failed together shall not come back together.
            end.wait(self.pause_seconds * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
        if find(self.store, name) is None:
            raise ImageError("was pulled, but is another image", where=name)
        mark_used(self.store.folder, name)


def pull_with_progress(puller: Puller, names: Sequence[str], console: Console) -> list[Outcome]:
    """Pull with a progress bar, and say what could not be had."""
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console) as progress:
        bar = progress.add_task("images", total=len(set(names)))

        def done(outcome: Outcome) -> None:
            progress.advance(bar)
            if outcome.error:
                progress.console.print(f"{outcome.name}: {outcome.error}", markup=False)

        outcomes = puller.pull(names, done)
    pulled = sum(outcome.pulled for outcome in outcomes)
    failed = sum(bool(outcome.error) for outcome in outcomes)
    present = len(outcomes) - pulled - failed
    console.print(f"{pulled} pulled, {present} were there, {failed} could not be had")
    return outcomes


def _stop(end: threading.Event) -> None:
    if end.is_set():
        raise _EndedError
