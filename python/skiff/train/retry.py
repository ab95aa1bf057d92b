"""Another try after a failure that passes, as causes.py lists them; anything else ends the run.

Tries are bounded: BACK_OFF says how many may fail in a row without a checkpoint in between.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from skiff import events
from skiff.errors import InfraError
from skiff.train.causes import failure_in, failure_of

BACK_OFF = (10.0, 60.0, 300.0)  # seconds before the second, third and fourth try


class TransientError(InfraError):
    """A failure that may pass. `why` says so."""

    def __init__(self, what: str, *, why: str, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where=where, remedy=remedy)
        self.why = why


def failure_told(log: Path, where: str) -> InfraError:
    """What a log says of the end of `where`; a TransientError if that may pass."""
    failure, remedy = failure_in(log), f"log: {log}"
    if failure.retry:
        return TransientError(failure.sentence, why=failure.retry, where=where, remedy=remedy)
    return InfraError(failure.sentence, where=where, remedy=remedy)


def with_retries(run_dir: Path, work: Callable[[int], int], reached: Callable[[], int]) -> int:
    """What `work(number of the try)` gives. `reached` is the newest checkpoint's step.

    Raises InfraError, and whatever else the last try has raised.
    """
    number, failed, before = 0, 0, reached()
    while True:
        number += 1
        try:
            return work(number)
        except (InfraError, OSError) as error:
            known = failure_of(str(error))
            why = error.why if isinstance(error, TransientError) else known.retry
            if reached() > before:
                failed, before = 0, reached()
            if not why or failed == len(BACK_OFF):
                if isinstance(error, OSError):
                    raise InfraError(known.sentence, where=error.filename or "") from error
                raise
            seconds = BACK_OFF[failed]
            failed += 1
            what = f"{error}; tried again in {seconds:g} s, because {why}"
            events.emit(run_dir, "retry", what=what, number=number, seconds=seconds)
            print(what, flush=True)
            time.sleep(seconds)
