"""The folder of one run: made once, then only appended to.

config.toml      resolved, never changed
attempts/NN/     one start of the run each
rendezvous/      where the halves find each other
logs/ events.jsonl trajectories/ metrics/ ckpt/ model/ report.html
"""

from __future__ import annotations

import time
from pathlib import Path

from skiff.config import Config
from skiff.config.load import write_config
from skiff.errors import ConfigError

FOLDERS = ("attempts", "rendezvous", "logs", "trajectories", "metrics", "ckpt", "data", "model")


def make(config: Config) -> Path:
    """A new run folder below run.folder, named by run.name and the time. Raises ConfigError."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = config.run.folder.absolute() / f"{config.run.name}-{stamp}"
    try:
        folder.mkdir(parents=True)
        for name in FOLDERS:
            (folder / name).mkdir()
        write_config(config, folder / "config.toml")
    except FileExistsError:
        raise ConfigError("exists already", where=str(folder), remedy="start again") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(folder), remedy="set run.folder"
        ) from error
    return folder


def new_attempt(folder: Path) -> int:
    """Reserve the next attempt's number, starting at 1; safe against a second launcher."""
    if not (folder / "config.toml").is_file():
        raise ConfigError(
            "is no run folder (no config.toml in it)",
            where=str(folder),
            remedy="`skiff run PROFILE` makes one",
        )
    number = 1
    while True:
        try:
            (folder / "attempts" / f"{number:02d}").mkdir()
        except FileExistsError:
            number += 1
        else:
            return number
