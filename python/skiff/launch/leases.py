"""Proof of life between the halves of an attempt, so that neither burns hours alone.

Each node of a half renews RUN/rendezvous/NN/lease-<half>-<node>.json; whoever waits for it looks
whether its text changes, by its own clock: nodes' clocks and the times of files on a network file
system differ by more than a lease may. A file that nobody renews is a dead half's and counts as
absent.

Not covered: a network that is cut between a node and the shared folder only for the other half's
files.
"""

from __future__ import annotations

import json
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from skiff.errors import InfraError
from skiff.files import write_atomic

RENEWALS = 12  # of a lease, until it would expire
JOIN_SECONDS = 10.0  # a write to a network file system that hangs must not hold up the end


class LostError(InfraError):
    """A part of the run was there and is gone. The run itself is sound: it may go on elsewhere."""


class Lease:
    """Ours. A thread renews it while the `with` block runs; then the file is gone.

    seconds  it expires so long after its last renewal
    """

    def __init__(self, meeting: Path, half: str, node: str, *, seconds: float) -> None:
        self._path = meeting / f"lease-{half}-{node}.json"
        self._fixed = {"half": half, "node": node, "job": os.environ.get("SLURM_JOB_ID", "")}
        self._seconds = seconds
        self._number = 0
        self._renewed = time.monotonic()
        self._failure = ""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> Self:
        """Raises InfraError when the folder cannot be written."""
        try:
            self._renew()
        except OSError as error:
            raise InfraError(
                f"cannot be written: {error.strerror}", where=str(self._path)
            ) from error
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.set()
        self._thread.join(JOIN_SECONDS)
        self._path.unlink(missing_ok=True)

    def check(self) -> None:
        """Raises InfraError once it has expired: the other half takes us for dead by now."""
        if time.monotonic() - self._renewed > self._seconds:
            raise InfraError(
                f"could not be renewed for {self._seconds:g} s: {self._failure or 'no answer'}",
                where=str(self._path),
                remedy="is the run folder's file system full or gone?",
            )

    def _beat(self) -> None:
        while not self._ending.wait(self._seconds / RENEWALS):
            try:
                self._renew()
            except OSError as error:  # `check` says so when it does not pass
                self._failure = str(error)

    def _renew(self) -> None:
        self._number += 1
        beat = {**self._fixed, "number": self._number, "time": round(time.time(), 3)}
        write_atomic(self._path, json.dumps(beat) + "\n")
        self._renewed = time.monotonic()


@dataclass
class _Seen:
    """A lease's text, and when we first saw that text. `alive`: we saw it change."""

    text: str
    since: float
    alive: bool = False


class Partner:
    """The other half, as its leases tell.

    nodes         so many leases it has
    seconds       one of them expires so long after its last renewal
    wait_seconds  all are there so long after we have begun to look
    """

    def __init__(
        self, meeting: Path, half: str, *, nodes: int, seconds: float, wait_seconds: float
    ) -> None:
        self._meeting = meeting
        self._half = half
        self._nodes = nodes
        self._seconds = seconds
        self._wait_seconds = wait_seconds
        self._begun = time.monotonic()
        self._seen: dict[Path, _Seen] = {}

    def check(self) -> None:
        """Look. Raises InfraError when it has not come in time, LostError when it has ceased to
        renew a lease."""
        self._look()
        now = time.monotonic()
        alive = {path: seen for path, seen in self._seen.items() if seen.alive}
        for path, seen in alive.items():
            if now - seen.since > self._seconds:
                node = path.stem.removeprefix(f"lease-{self._half}-")
                raise LostError(
                    f"has not renewed its lease for {self._seconds:g} s: its node or its job is"
                    " gone",
                    where=f"{self._half} half on {node}",
                    remedy="skiff resume RUN; it goes on from its last checkpoint",
                )
        if len(alive) < self._nodes and now - self._begun > self._wait_seconds:
            raise InfraError(
                f"{len(alive)} of {self._nodes} nodes have appeared within"
                f" {self._wait_seconds:g} s",
                where=f"{self._half} half",
                remedy=f"its job waits in the queue or its node does not share {self._meeting};"
                " slurm.wait_seconds bounds the wait",
            )

    def _look(self) -> None:
        for path in self._meeting.glob(f"lease-{self._half}-*.json"):
            try:
                text = path.read_text()
            except FileNotFoundError:
                continue  # it has just ended
            seen = self._seen.get(path)
            if seen is None:
                self._seen[path] = _Seen(text, time.monotonic())
            elif seen.text != text:
                self._seen[path] = _Seen(text, time.monotonic(), alive=True)
