"""WANDB_API_KEY and HF_TOKEN: read from the environment or one private file, never echoed.

The file (`.env` in the working folder, or `$SKIFF_SECRETS`) holds `NAME=value` lines and must be
mode 0600, because a login node is shared.

Slurm keeps the environment of whom submits with the job: in its state, in a node's spool and, where
a site wants so, in the accounting data base. So a job gets none of them by its environment
(`without_secrets`), and reads the file.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Mapping
from pathlib import Path

from skiff.errors import ConfigError

NAMES = ("WANDB_API_KEY", "HF_TOKEN")
FILE_VARIABLE = "SKIFF_SECRETS"


def load_secrets(
    environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> dict[str, str]:
    """The known secrets that are set. The environment wins over the file.

    Raises ConfigError when the file is readable by others or holds an unknown or broken line (the
    line's value is not shown).
    """
    env = os.environ if environ is None else environ
    found = _file_secrets(env, folder or Path.cwd())
    found.update({name: env[name] for name in NAMES if env.get(name)})
    return found


def without_secrets(environ: Mapping[str, str], folder: Path | None = None) -> dict[str, str]:
    """`environ` for programs that need no secret: it names the file, when there is one."""
    kept = {name: value for name, value in environ.items() if name not in NAMES}
    path = _place(environ, folder or Path.cwd())
    if path.is_file():
        kept[FILE_VARIABLE] = str(path.absolute())
    return kept


def check_in_file(
    name: str, environ: Mapping[str, str] | None = None, folder: Path | None = None
) -> None:
    """Raises ConfigError when the environment has a secret that a job would not find in the file.

    And as load_secrets does.
    """
    env, folder = os.environ if environ is None else environ, folder or Path.cwd()
    if env.get(name) and _file_secrets(env, folder).get(name) != env[name]:
        path = _place(env, folder)
        raise ConfigError(
            "is set in the environment, which Slurm would keep; jobs read it from a file",
            where=name,
            remedy=f'(umask 077; echo "{name}=${name}" >>{shlex.quote(str(path))})',
        )


def _place(env: Mapping[str, str], folder: Path) -> Path:
    named = env.get(FILE_VARIABLE)
    return Path(named) if named else folder / ".env"


def _file_secrets(env: Mapping[str, str], folder: Path) -> dict[str, str]:
    path = _place(env, folder)
    if not path.is_file():  # a folder `.env` is a virtual environment
        if env.get(FILE_VARIABLE):
            raise ConfigError(f"named by {FILE_VARIABLE} but is no file", where=str(path))
        return {}
    return _read(path)


def _read(path: Path) -> dict[str, str]:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & 0o077:
        raise ConfigError(
            f"holds secrets but is readable by others (mode {mode:04o})",
            where=str(path),
            remedy=f"chmod 600 {path}",
        )
    secrets: dict[str, str] = {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}", where=str(path)) from None
    except UnicodeDecodeError:  # its text would show what stands there
        raise ConfigError("is no UTF-8", where=str(path)) from None
    for number, raw in enumerate(lines, 1):
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
