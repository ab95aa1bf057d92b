"""What the GPUs of the trainer's node do: an event a sample, and an alert when it is no good sign.

    gpu    node, and by GPU: used_mib, total_mib, busy (percent), celsius; null where not told
    alert  what: one sentence, once as long as it holds

Not covered: Xid messages, which only the kernel's log has; further nodes of the trainer.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from skiff import events
from skiff.errors import InfraError
from skiff.gpus import Gpu, read_gpus

SAMPLE_SECONDS = 30.0
IDLE_SECONDS = 900.0  # longer than an engine takes to start, and than most rollouts wait
IDLE_PERCENT = 1.0
FULL_SHARE = 0.95
JOIN_SECONDS = 5.0  # a call to a GPU that has hung up must not hold up the end
HOT_CELSIUS = 90.0  # data-centre GPUs slow down a little above


@contextmanager
def watch_gpus(run_dir: Path, *, every: float = SAMPLE_SECONDS) -> Iterator[None]:
    """Sample in a thread while the `with` block runs, every so many seconds."""
    ending = threading.Event()
    thread = threading.Thread(target=_watch, args=(run_dir, every, ending), daemon=True)
    thread.start()
    try:
        yield
    finally:
        ending.set()
        thread.join(JOIN_SECONDS)


class Alerts:
    """What was alerted, so that it is said once."""

    def __init__(self, begun: float) -> None:
        self._busy_at = begun
        self._said: set[str] = set()
        self._errors: dict[int, float] = {}

    def look(self, gpus: Sequence[Gpu], now: float) -> list[str]:
        """New sentences on a sample of the time `now`, in seconds."""
        holds = {**self._idle(gpus, now), **dict(_of_each(gpus))}
        new = [sentence for key, sentence in holds.items() if key not in self._said]
        self._said = set(holds)
        return new + self._new_errors(gpus)

    def _idle(self, gpus: Sequence[Gpu], now: float) -> dict[str, str]:
        known = [gpu.busy for gpu in gpus if gpu.busy is not None]
        if not known or max(known) > IDLE_PERCENT:
            self._busy_at = now
        idle = now - self._busy_at
        if idle < IDLE_SECONDS:
            return {}
        names = ", ".join(str(gpu.index) for gpu in gpus)
        return {"idle": f"GPUs {names}: idle for {idle / 60:.0f} minutes"}

    def _new_errors(self, gpus: Sequence[Gpu]) -> list[str]:
        found = []
        for gpu in gpus:
            count = gpu.ecc_errors or 0
            if count > self._errors.get(gpu.index, 0):
                found.append(f"GPU {gpu.index} counts {count:.0f} uncorrected memory errors")
            self._errors[gpu.index] = count
        return found


def _of_each(gpus: Sequence[Gpu]) -> Iterator[tuple[str, str]]:
    for gpu in gpus:
        if gpu.used_mib is not None and gpu.total_mib:
            share = gpu.used_mib / gpu.total_mib
            if share > FULL_SHARE:
                yield (
                    f"full {gpu.index}",
                    f"GPU {gpu.index} has used {100 * share:.0f} % of its memory",
                )
        if gpu.celsius is not None and gpu.celsius >= HOT_CELSIUS:
            yield f"hot {gpu.index}", f"GPU {gpu.index} is at {gpu.celsius:.0f} °C"


def _watch(run_dir: Path, every: float, ending: threading.Event) -> None:
    alerts, failure = Alerts(time.monotonic()), ""
    while True:
        try:
            gpus = read_gpus()
        except InfraError as error:  # a GPU that has hung up hangs nvidia-smi as well
            new = [f"the GPUs cannot be watched: {error.what}"] if str(error) != failure else []
            failure = str(error)
        else:
            failure = ""
            _emit(run_dir, gpus)
            new = alerts.look(gpus, time.monotonic())
        for sentence in new:
            events.emit(run_dir, "alert", what=sentence)
        if ending.wait(every):
            return


def _emit(run_dir: Path, gpus: Sequence[Gpu]) -> None:
    events.emit(
        run_dir,
        "gpu",
        node=socket.gethostname(),
        used_mib=[gpu.used_mib for gpu in gpus],
        total_mib=[gpu.total_mib for gpu in gpus],
        busy=[gpu.busy for gpu in gpus],
        celsius=[gpu.celsius for gpu in gpus],
    )
