"""What a run needs before any part of it is started: checked in seconds, without verl.

Not covered: whether the model fits into memory, and whether the tasks' images exist.
"""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

from skiff.binds import bound
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.train.data import select

WARM_START = "warm-start"


def check_inputs(config: Config) -> None:
    """Model, tasks and runtime server of a new run. Raises ConfigError or TaskError."""
    check_places(config)
    select(config)


def check_places(config: Config) -> None:
    """What a resumed run needs again. Raises ConfigError."""
    if config.model.path != WARM_START:
        model_folder(config)
    if config.runtime.url is not None and not os.environ.get(KEY_FILE_VARIABLE):
        raise ConfigError(
            f"is set, but the variable {KEY_FILE_VARIABLE} is not",
            where="runtime.url",
            remedy=f"set {KEY_FILE_VARIABLE} to the key file of that server",
        )


def check_attention(config: Config) -> None:
    """Where the trainer runs. Raises ConfigError when flash-attn is asked for and absent."""
    if config.hardware.attention == "flash_attention_2" and find_spec("flash_attn") is None:
        raise ConfigError(
            "is not installed here",
            where='hardware.attention = "flash_attention_2"',
            remedy='use "sdpa", or an image built with `skiff images build trainer --flash-archs`',
        )


def model_folder(config: Config) -> Path:
    """The absolute path of model.path, as it is for this process. Raises ConfigError when it is no
    model."""
    folder = bound(Path(config.model.path))
    try:
        found = (folder / "config.json").is_file()
    except OSError as error:
        raise ConfigError(
            f"cannot be looked into: {error.strerror}", where=f"model.path = {config.model.path}"
        ) from None
    if not found:
        raise ConfigError(
            "is no Hugging Face model folder (no config.json in it)",
            where=f"model.path = {config.model.path}",
            remedy="give the path of a downloaded model; nothing is fetched at run time",
        )
    return folder.absolute()
