"""A copy of the run folder elsewhere, by rsync: every few minutes, and once more at the end.

What goes: all but checkpoints (unless asked for), the rendezvous with the run's key, and the
servers' own state. An rsync that fails is told in an event and tried again at the next turn; it
never ends a run. To another host it goes by ssh, which must not ask for anything.

Not covered: removing at the destination what the run removes, such as old checkpoints.
"""

from __future__ import annotations

import math
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skiff import events
from skiff.config import Config
from skiff.report.summary import PAUSED

PROGRAM = "rsync"
LAST_SECONDS = 300.0  # of the copy at the end
HASTE_SECONDS = 10.0  # of that before a time limit: the next attempt goes on copying
POLL_SECONDS = 0.1
ANSWER_SECONDS = 60  # rsync's own time-out for a peer that is silent
LEFT_OUT = ("/rendezvous/", "/runtime/", ".*")  # secrets; sockets and journals; half-written files
CHECKPOINTS = "/ckpt/"
VANISHED = 24  # rsync's exit status when files were removed meanwhile
SSH = "ssh -o BatchMode=yes -o ConnectTimeout=20"


@contextmanager
def synced(config: Config, run_dir: Path) -> Iterator[None]:
    """Copy in a thread while the `with` block runs, and a last time after it, if run.sync_to asks
    for it."""
    if config.run.sync_to is None:
        yield
        return
    copier = Copier(config, run_dir)
    every = 60.0 * config.run.sync_minutes
    thread = threading.Thread(target=copier.run, args=(every,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        copier.end(_seconds_left(run_dir))
        thread.join()


def _seconds_left(run_dir: Path) -> float:
    ended = [event["exit_code"] for event in events.read(run_dir, "finished")]
    return HASTE_SECONDS if ended and ended[-1] in PAUSED else LAST_SECONDS


def rsync_command(config: Config, run_dir: Path) -> list[str]:
    """The call that brings the destination up to date; it makes the folder of the run there."""
    left_out = list(LEFT_OUT)
    if not config.run.sync_checkpoints:
        left_out.append(CHECKPOINTS)
    return [
        *(PROGRAM, "--archive", "--protect-args", f"--timeout={ANSWER_SECONDS}", f"--rsh={SSH}"),
        *(f"--exclude={pattern}" for pattern in left_out),
        *("--", f"{run_dir}/", f"{config.run.sync_to}/{run_dir.name}/"),
    ]


class Copier:
    """Carries the copies out, one at a time, and tells of them in events.jsonl."""

    def __init__(self, config: Config, run_dir: Path) -> None:
        self._command = rsync_command(config, run_dir)
        self._place = str(config.run.sync_to)
        self._run_dir = run_dir
        self._ending = threading.Event()
        self._deadline = math.inf
        self._told = ""

    def run(self, every: float) -> None:
        """Copy every so many seconds until `end`, then a last time."""
        while not self._ending.wait(every):
            self._tell(self._copy())
        self._tell(self._copy())

    def end(self, seconds: float) -> None:
        """One more copy, then `run` returns; after so many seconds at the latest."""
        self._deadline = time.monotonic() + seconds
        self._ending.set()

    def _copy(self) -> str:
        """What was wrong; "" when it went well."""
        with tempfile.TemporaryFile() as words:
            try:
                process = subprocess.Popen(
                    self._command, stdin=subprocess.DEVNULL, stdout=words, stderr=words
                )
            except FileNotFoundError:
                return "rsync is not installed on this node"
            while process.poll() is None:
                if time.monotonic() > self._deadline:
                    process.kill()
                    process.wait()
                    return "the end of the run came first"
                time.sleep(POLL_SECONDS)
            words.seek(0)
            lines = words.read().decode(errors="replace").strip().splitlines()
        if process.returncode in (0, VANISHED):
            return ""
        return lines[0] if lines else f"exit {process.returncode}"

    def _tell(self, failure: str) -> None:
        """Say what has changed: a failure that lasts is one event."""
        if failure == self._told:
            return
        self._told = failure
        if failure:
            what = f"files could not be copied to {self._place}: {failure}"
        else:
            what = f"files are copied to {self._place} again"
        events.emit(self._run_dir, "alert", what=what)
