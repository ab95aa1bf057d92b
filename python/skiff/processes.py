"""One child process and everything it starts, ended together and by name.

Ray detaches its daemons, so a process group does not hold them. This process makes itself the
"child subreaper" instead (prctl, Linux): whatever a dead descendant leaves behind becomes our
child and can be listed. A mark in its environment tells whose it is; where a program has written
over that (Ray's workers do, to set their titles) it counts that it was seen below the child.
Nothing else is touched. A child is told when we die ourselves, even by SIGKILL.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
TERM_SECONDS = 60.0  # a trainer ends Ray, a server its sandboxes
REST_SECONDS = 3.0
LOOK_SECONDS = 1.0
KILL_SECONDS = 10.0

_libc = ctypes.CDLL(None, use_errno=True)
_numbers = itertools.count()
_commands: set[int] = set()  # pids of all Child objects: subprocess reaps these itself


class Child:
    """A running command with its output in `log`. Leaving its `with` block ends it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        self._mark = f"SKIFF_CHILD_{os.getpid()}_{next(_numbers)}"
        self._seen: set[psutil.Process] = set()
        self._next_look = 0.0
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                command,
                env={**environment, self._mark: "1"},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us; we end the child in order
                preexec_fn=_die_with_parent,
            )
        _commands.add(self._process.pid)

    @property
    def returncode(self) -> int | None:
        """The command's exit status; None while it runs, negative for a signal.

        Whoever watches a child asks for this often, so orphans that have ended are reaped here.
        """
        _reap_orphans()
        if time.monotonic() >= self._next_look:
            self._look()
        return self._process.poll()

    @property
    def pid(self) -> int:
        return self._process.pid

    def end(self) -> None:
        """SIGTERM, at its deadline SIGKILL, then the same for all that it left behind."""
        if self.returncode is None:
            self._look()
            self._process.terminate()
            try:
                self._process.wait(TERM_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait(KILL_SECONDS)
        self._end_rest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.end()

    def _look(self) -> None:
        """Remember what now runs below the child."""
        self._next_look = time.monotonic() + LOOK_SECONDS
        with contextlib.suppress(psutil.NoSuchProcess):
            self._seen.update(psutil.Process(self.pid).children(recursive=True))

    def _end_rest(self) -> None:
        rest = self._rest()
        for process in rest:
            _signal(process.terminate)
        _, stubborn = psutil.wait_procs(rest, timeout=REST_SECONDS)
        # The dead may have left children of their own, which are ours by now.
        for process in {*stubborn, *self._rest()}:
            _signal(process.kill)
        psutil.wait_procs(self._rest(), timeout=KILL_SECONDS)

    def _rest(self) -> list[psutil.Process]:
        """Living descendants of ours that came from this child, parents before their children."""
        rest: list[psutil.Process] = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):
                if process in self._seen or process.parent() in rest or self._is_marked(process):
                    rest.append(process)
        return rest

    def _is_marked(self, process: psutil.Process) -> bool:
        try:
            return self._mark in process.environ()
        except psutil.AccessDenied:  # a container's: its own server ends it
            return False


def _die_with_parent() -> None:
    _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def _reap_orphans() -> None:
    """Forget the ended processes that were left to us: every sandbox leaves one, and each would
    stay a zombie as long as we live. What we have started ourselves is not touched: it is a
    `Child`, or in our session."""
    session = os.getsid(0)
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    for pid in map(int, children.split()):
        if pid not in _commands and os.getsid(pid) != session:
            os.waitpid(pid, os.WNOHANG)


def _signal(send: Callable[[], None]) -> None:
    try:
        send()
    except psutil.NoSuchProcess:
        return
