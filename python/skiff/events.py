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


def read(run_dir: Path, kind: str | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events in file order; a torn last line (a writer was killed) is left out."""
    path = run_dir / FILE
    if not path.exists():
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in lines:
            try:
                event = json.loads(line)
            except json.JSONDecodeError:
                continue
            if isinstance(event, dict) and (kind is None or event.get("kind") == kind):
                yield event
