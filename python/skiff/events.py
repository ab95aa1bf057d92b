"""`events.jsonl`: one typed event a line, appended by every process of a run.

Appends are single `write` calls on an O_APPEND descriptor, so lines of different processes do not
mix on a local file system; over NFS each writer should keep lines below 4 KiB, and ours do.
Not covered: rotation (a run of 10,000 trajectories writes about 5 MB).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

FILE = "events.jsonl"


def emit(run_dir: Path, kind: str, **fields: Any) -> None:
    """Append the event `kind` with `fields` (JSON values) and a UTC epoch `time` in seconds."""
    line = json.dumps({"time": round(time.time(), 3), "kind": kind, **fields}, default=str) + "\n"
    descriptor = os.open(run_dir / FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode())
    finally:
        os.close(descriptor)


class Tail:
    """What is appended to a file of JSON lines, while others write it."""

    def __init__(self, file: Path, *, skip_old: bool = False) -> None:
        self._file = file
        self._offset = file.stat().st_size if skip_old and file.exists() else 0

    def new(self) -> Iterator[dict[str, Any]]:
        """The whole lines since the last call; a line that is no JSON object is left out."""
        if not self._file.exists():
            return
        with self._file.open("rb") as source:
            source.seek(self._offset)
            for line in source:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                if (record := _object(line)) is not None:
                    yield record


def read(run_dir: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events in file order; a torn line (a writer was killed) is left out."""
    path = run_dir / FILE
    if not path.exists():
        return
    with path.open("rb") as lines:
        for line in lines:
            event = _object(line)
            if event is not None and (kind is None or event.get("kind") == kind):
                yield event


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(line)
    except ValueError:  # no JSON, or no UTF-8
        return None
    return found if isinstance(found, dict) else None
