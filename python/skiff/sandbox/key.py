"""The run's key: a file that only its owner can read."""

from __future__ import annotations

import stat
from pathlib import Path

from skiff.errors import ConfigError


def read_key_file(path: Path) -> str:
    """The key in `path`. Raises ConfigError when it is missing, empty or open to others."""
    where = str(path)
    if not path.is_file():
        raise ConfigError(
            "no such key file", where=where, remedy="name the key file of the runtime server"
        )
    if path.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise ConfigError("others can read the key", where=where, remedy=f"chmod 600 {where}")
    key = path.read_text().strip()
    if not key:
        raise ConfigError(
            "is empty", where=where, remedy="remove it; the runtime server makes a new key"
        )
    return key
