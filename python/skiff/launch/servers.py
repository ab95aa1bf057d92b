"""Which of the servers that have published themselves are those of this attempt.

A file of a dead job may lie in a meeting folder that was copied, or be left by a server that was
killed; at its port another program may answer by now. Such a file is set aside with a sentence,
under a name that nobody looks for.
"""

from __future__ import annotations

import json
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from skiff import events
from skiff.errors import InfraError
from skiff.launch.submit import job_ids
from skiff.sandbox.nodes import PATTERN
from skiff.sandbox.wire import HEALTH_SECONDS

REACH_SECONDS = 60.0  # it listened when it wrote its file


class Servers:
    """The servers of `attempt` of a submitted run."""

    def __init__(self, run_dir: Path, meeting: Path, attempt: int) -> None:
        self._run_dir = run_dir
        self._meeting = meeting
        self._attempt = attempt
        self._jobs = set(job_ids(run_dir).values())
        self._silent: dict[str, float] = {}  # text of a file -> since when nobody answers there

    def ready(self) -> bool:
        """Whether one answers; the stale ones are set aside.

        Raises InfraError when one of our jobs does not answer for REACH_SECONDS.
        """
        answering = [path for path in sorted(self._meeting.glob(PATTERN)) if self._answers(path)]
        return bool(answering)

    def _answers(self, path: Path) -> bool:
        try:
            text = path.read_text()
        except FileNotFoundError:
            return False  # it has just ended
        place = json.loads(text)
        if place["attempt"] != self._attempt or place["job"] not in self._jobs:
            self._set_aside(path, f"is of attempt {place['attempt']}, job {place['job']}")
            return False
        try:
            nonce = _nonce(place)
        except httpx.HTTPError as error:
            self._note_silence(text, place, error)
            return False
        if nonce == place["nonce"]:
            return True
        if path.exists() and path.read_text() == text:  # else it has just started anew
            self._set_aside(path, f"names {place['url']}, where another server answers")
        return False

    def _set_aside(self, path: Path, why: str) -> None:
        what = f"{path.name} {why}: it is stale and not believed"
        path.rename(path.with_suffix(".stale"))
        events.emit(self._run_dir, "stale", what=what)
        print(what, file=sys.stderr)

    def _note_silence(self, text: str, place: Mapping[str, Any], error: httpx.HTTPError) -> None:
        since = self._silent.setdefault(text, time.monotonic())
        if time.monotonic() - since > REACH_SECONDS:
            raise InfraError(
                f"does not answer {socket.gethostname()} for {REACH_SECONDS:g} s: {error}",
                where=f"runtime server {place['url']} of job {place['job']}",
                remedy="set runtime.host to an address that the trainer's node reaches",
            ) from error


def _nonce(place: Mapping[str, Any]) -> str:
    answer = httpx.get(f"{place['url']}/health", timeout=HEALTH_SECONDS, trust_env=False)
    try:
        return str(answer.json()["nonce"])
    except (ValueError, KeyError):
        return ""  # no server of ours
