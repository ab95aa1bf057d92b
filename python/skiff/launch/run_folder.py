"""The folder of one run: made once, then only appended to.

config.toml      resolved, never changed
attempts/NN/     one start of the run each
rendezvous/      where the halves find each other
logs/ events.jsonl trajectories/ metrics/ ckpt/ model/ report.html
"""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from pathlib import Path

from skiff.attempts import attempt_folder, meeting_folder
from skiff.config import Config, load_run_config
from skiff.config.load import write_config
from skiff.errors import ConfigError
from skiff.tasks.sources import FILE_KINDS

CONFIG = "config.toml"
END = "end"
FOLDERS = ("attempts", "rendezvous", "logs", "trajectories", "metrics", "ckpt", "data", "model")


def place(config: Config) -> Path:
    """Where a run that is made now has its folder: below run.folder, named by name and time."""
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return config.run.folder.absolute() / f"{config.run.name}-{stamp}"


def make(config: Config) -> Path:
    """A new run folder at its `place`. Raises ConfigError.

    Its config.toml names files by absolute paths, so that a resume may come from anywhere.
    """
    folder = place(config)
    try:
        folder.mkdir(parents=True)
        for name in FOLDERS:
            (folder / name).mkdir()
        write_config(_absolute(config), folder / CONFIG)
    except FileExistsError:
        raise ConfigError("exists already", where=str(folder), remedy="start again") from None
    except OSError as error:
        raise ConfigError(
            f"cannot be written: {error.strerror}", where=str(folder), remedy="set run.folder"
        ) from error
    return folder


def read_config(folder: Path) -> Config:
    """The config of an existing run. Raises ConfigError when `folder` is no run folder."""
    check_made(folder)
    return load_run_config(folder / CONFIG)


def check_made(folder: Path) -> None:
    """Raises ConfigError when `folder` is no run folder; that of an older version is one."""
    if not (folder / CONFIG).is_file():
        raise ConfigError(
            f"is no run folder (no {CONFIG} in it)",
            where=str(folder),
            remedy="`skiff run PROFILE` makes one",
        )


def newest_attempt(folder: Path) -> str:
    """The name of its folder, e.g. '01'; also where there was none yet."""
    return max((path.name for path in (folder / "attempts").glob("*")), default="01")


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Hold the run. Raises ConfigError while another launcher on this machine holds it."""
    with (folder / CONFIG).open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                "is in use by another launcher", where=str(folder), remedy="let that one end"
            ) from None
        yield


def new_attempt(folder: Path) -> int:
    """Reserve the next attempt's number, starting at 1; safe against a second launcher.

    Raises ConfigError when the folder cannot be written.
    """
    number = 1
    while True:
        try:
            attempt_folder(folder, number).mkdir(parents=True)
        except FileExistsError:
            number += 1
        except OSError as error:
            raise ConfigError(f"cannot be written: {error.strerror}", where=str(folder)) from error
        else:
            return number


def meeting(folder: Path, attempt: int) -> Path:
    """The folder in which the halves of one attempt find each other; made when absent.

    A file END in it asks both to end in order.
    """
    path = meeting_folder(folder, attempt)
    path.mkdir(exist_ok=True)
    attempt_folder(folder, attempt).mkdir(exist_ok=True)
    return path


def _absolute(config: Config) -> Config:
    model, tasks = config.model, config.tasks
    if Path(model.path).is_dir():  # 'warm-start' is no folder
        model = model.model_copy(update={"path": str(Path(model.path).absolute())})
    if tasks.skip_list is not None:
        tasks = tasks.model_copy(update={"skip_list": tasks.skip_list.absolute()})
    specs = {
        name: tuple(map(_absolute_spec, getattr(tasks, name))) for name in ("train", "validation")
    }
    tasks = tasks.model_copy(update=specs)
    images = config.images
    paths = {name: getattr(images, name) for name in ("runtime", "trainer")}
    paths = {name: path.absolute() for name, path in paths.items() if path is not None}
    binds = tuple(path.absolute() for path in images.binds)
    images = images.model_copy(update={**paths, "binds": binds})
    kernels = config.kernels
    if kernels.packs is not None:
        kernels = kernels.model_copy(update={"packs": kernels.packs.absolute()})
    changed = {"model": model, "tasks": tasks, "images": images, "kernels": kernels}
    return config.model_copy(update=changed)


def _absolute_spec(spec: str) -> str:
    kind, _, rest = spec.partition(":")
    return f"{kind}:{Path(rest).absolute()}" if kind in FILE_KINDS else spec
