"""What the server must know of its sandboxes after it was killed: one SQLite file.

A sandbox is written before its container exists and at every change of its state. A killed server
loses nothing that was saved; a host that loses power may lose the last moments, but its containers
as well. The file holds the sandboxes' keys: only its owner can read it. One server at a time has it
open, which also works on a network file system (no shared memory file is used).
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skiff.errors import InfraError

LOCK_SECONDS = 10.0  # that a predecessor may take to die
_TABLE = """
CREATE TABLE IF NOT EXISTS sandboxes (
    runtime_id TEXT PRIMARY KEY,
    key TEXT NOT NULL,
    port INTEGER NOT NULL,
    state TEXT NOT NULL,
    reason TEXT NOT NULL,
    failure TEXT,
    created REAL NOT NULL,
    boot TEXT NOT NULL,
    request TEXT NOT NULL,
    saved_at TEXT NOT NULL
)
"""
_SAVE = """
INSERT OR REPLACE INTO sandboxes
VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
"""
_LOAD = """
SELECT runtime_id, key, port, state, reason, failure, created, boot, request
FROM sandboxes ORDER BY rowid
"""


@dataclass(frozen=True)
class Entry:
    """One sandbox. `created` is in seconds since the boot `boot`; `request` must fit into JSON."""

    runtime_id: str
    key: str
    port: int
    state: str
    reason: str
    failure: str | None
    created: float
    boot: str
    request: Mapping[str, Any]


class Journal:
    """The entries in the file `path`. Every method raises InfraError when the file is damaged,
    in use by another server, or the disk is full."""

    def __init__(self, path: Path, *, lock_seconds: float = LOCK_SECONDS) -> None:
        self._path = path
        with self._errors():
            os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
            self._database = sqlite3.connect(path, timeout=lock_seconds, isolation_level=None)
            self._database.row_factory = sqlite3.Row
            # In this order: with an exclusive lock the log needs no shared memory.
            self._database.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._database.execute("PRAGMA journal_mode = WAL")
            self._database.execute("PRAGMA synchronous = NORMAL")
            self._database.execute(_TABLE)

    def save(self, entry: Entry) -> None:
        """Add an entry, or replace that of the same runtime id."""
        row = (
            entry.runtime_id,
            entry.key,
            entry.port,
            entry.state,
            entry.reason,
            entry.failure,
            entry.created,
            entry.boot,
            json.dumps(entry.request),
        )
        with self._errors():
            self._database.execute(_SAVE, row)

    def forget(self, runtime_ids: Iterable[str]) -> None:
        """Remove entries."""
        rows = [(runtime_id,) for runtime_id in runtime_ids]
        with self._errors():
            self._database.executemany("DELETE FROM sandboxes WHERE runtime_id = ?", rows)

    def entries(self) -> list[Entry]:
        """All entries, the one that was saved last at the end."""
        with self._errors():
            rows = self._database.execute(_LOAD).fetchall()
            return [Entry(**{**row, "request": json.loads(row["request"])}) for row in rows]

    def close(self) -> None:
        with self._errors():
            self._database.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError, ValueError) as error:
            raise InfraError(
                f"the journal of the sandboxes cannot be used: {error}",
                where=str(self._path),
                remedy="make room on its disk; end the other server that has it open; remove a "
                "damaged file, and its sandboxes are removed at the next start",
            ) from error
