"""One child process and everything it starts, ended together and by name.

Ray detaches its daemons, so a process group does not hold them. This process makes itself the
"child subreaper" instead (prctl, Linux): whatever a dead descendant leaves behind becomes our
child, can be listed, and is ended. Nothing else on the machine is touched.
"""

from __future__ import annotations

import ctypes
import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PR_SET_CHILD_SUBREAPER = 36
TERM_SECONDS = 20.0
KILL_SECONDS = 10.0


class Child:
    """A running command with its output in `log`. On exit of the `with` block it is ended."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._before = {process.pid for process in psutil.Process().children(recursive=True)}
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env=dict(environment),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end the child in order
            )

    @property
    def returncode(self) -> int | None:
        """The command's exit status; None while it runs, negative for a signal."""
        return self._process.returncode

    def running(self) -> bool:
        """Whether the command itself still runs."""
        return self._process.poll() is None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running():
            self._process.terminate()
            try:
                self._process.wait(TERM_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(KILL_SECONDS)
        self._end_descendants()

    def _end_descendants(self) -> None:
        left = self._descendants()
        for process in left:
            _signal(process.terminate)
        _, stubborn = psutil.wait_procs(left, timeout=3)
        # The dead may have left children of their own, which are ours by now.
        for process in {*stubborn, *self._descendants()}:
            _signal(process.kill)
        psutil.wait_procs(self._descendants(), timeout=KILL_SECONDS)

    def _descendants(self) -> list[psutil.Process]:
        found = psutil.Process().children(recursive=True)
        return [process for process in found if process.pid not in self._before]


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
