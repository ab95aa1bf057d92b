"""WANDB_API_KEY and HF_TOKEN: read from the environment or one private file, never echoed.

The file (`.env` in the working folder, or `$SKIFF_SECRETS`) holds `NAME=value` lines and must be
mode 0600, because a login node is shared.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from skiff.errors import ConfigError

NAMES = ("WANDB_API_KEY", "HF_TOKEN")


def load_secrets(
    environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> dict[str, str]:
    """The known secrets that are set. The environment wins over the file.

    Raises ConfigError when the file is readable by others or holds an unknown or broken line (the
    line's value is not shown).
    """
    env = os.environ if environ is None else environ
    named = env.get("SKIFF_SECRETS")
    path = Path(named) if named else (folder or Path.cwd()) / ".env"
    found = _read(path, required=named is not None)
    found.update({name: env[name] for name in NAMES if env.get(name)})
    return found


def _read(path: Path, *, required: bool) -> dict[str, str]:
    if not path.is_file():  # a folder `.env` is a virtual environment
        if required:
            raise ConfigError("named by SKIFF_SECRETS but is no file", where=str(path))
        return {}
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"holds secrets but is readable by others (mode {mode:04o})",
            where=str(path),
            remedy=f"chmod 600 {path}",
        )
    secrets: dict[str, str] = {}
    for number, raw in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        line = raw.strip().removeprefix("export ").strip()
        if not line or line.startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals or name.strip() not in NAMES:
            raise ConfigError(
                "expected NAME=value with NAME one of " + ", ".join(NAMES),
                where=f"{path}, line {number}",
            )
        secrets[name.strip()] = value.strip().strip("'\"")
    return secrets
