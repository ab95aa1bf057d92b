"""How an entry point is started: from this clone, or inside its SIF by `apptainer run`.

Inside, the same arguments hold. What is written is bound to its own path; model and task files
are, read-only, where skiff.binds says. The image gets an empty environment but for what is passed
here, no home, and /tmp on a disk of this node; secrets travel as variables of the process, never
as arguments.

Not covered: GPUs other than NVIDIA's.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.apptainer import apptainer_environment, apptainer_root, find_apptainer
from skiff.binds import BOUND, DATA, MODEL, PACKS, RUN, SCRATCH
from skiff.config import Config
from skiff.config.secrets import load_secrets, without_secrets
from skiff.kernels.variables import ROOT
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.tasks.sources import FILE_KINDS
from skiff.tasks.store import skiff_home
from skiff.train.inputs import WARM_START

# What of the launcher's environment an entry point reads.
PASSED = (
    *(KEY_FILE_VARIABLE, "SKIFF_HOME", "SKIFF_APPTAINER_ROOT", "HTTPS_PROXY", "https_proxy"),
    "CUDA_VISIBLE_DEVICES",  # what Slurm has given to the job
)


@dataclass(frozen=True)
class Program:
    """A command and its whole environment."""

    command: list[str]
    environment: dict[str, str]


@dataclass(frozen=True)
class Bind:
    """`source` of the host at the path `inside` of an image."""

    source: Path
    inside: Path
    read_only: bool = False

    @property
    def option(self) -> str:
        return f"--bind={self.source}:{self.inside}" + (":ro" if self.read_only else "")


def clone_program(script: Path, arguments: Sequence[str], *, secrets: bool) -> Program:
    """An entry point of this clone; `secrets`: with those of our environment."""
    environment = dict(os.environ) if secrets else without_secrets(os.environ)
    return Program([sys.executable, str(script), *arguments], environment)


def sif_program(
    image: Path,
    arguments: Sequence[str],
    *,
    binds: Iterable[Bind],
    scratch: Path,
    variables: Mapping[str, str],
    gpus: bool = False,
) -> Program:
    """The entry point of an image: a SIF, or one that is unpacked in a folder.

    Of `binds` those are left out whose source is not there; `scratch` is SCRATCH. With `gpus` the
    host's NVIDIA driver and devices are bound, too, and an empty folder for compiled kernels.
    """
    found = {bind.inside: bind for bind in binds if bind.source.exists()}
    for inside in found:  # a place below /tmp must exist in what is bound to /tmp
        if inside.is_relative_to(SCRATCH):
            (scratch / inside.relative_to(SCRATCH)).mkdir(parents=True, exist_ok=True)
    options = [
        f"--bind={scratch}:{SCRATCH}",
        "--bind=/dev/shm",
        *(found[inside].option for inside in sorted(found)),
    ]
    isolated = ["--userns", "--contain", "--cleanenv", "--no-home", f"--pwd={SCRATCH}"]
    if gpus:
        (scratch / ROOT.name).mkdir(exist_ok=True)
        isolated += ["--nv", f"--bind={scratch / ROOT.name}:{ROOT}"]
    command = [str(find_apptainer()), "--silent", "run", *isolated, *options, str(image)]
    environment = apptainer_environment()
    environment |= {f"APPTAINERENV_{name}": value for name, value in variables.items()}
    return Program([*command, *arguments], environment)


def passed_variables() -> dict[str, str]:
    """What an image gets of our environment."""
    return {name: os.environ[name] for name in PASSED if name in os.environ}


def at_own_path(path: Path, *, read_only: bool = False) -> Bind:
    """A path of the host that has the same name inside."""
    return Bind(path.absolute(), path.absolute(), read_only)


def trainer_binds(config: Config, run_dir: Path) -> list[Bind]:
    """Every path that the trainer reads or writes."""
    key_file, packs = os.environ.get(KEY_FILE_VARIABLE), config.kernels.packs
    own = [run_dir, skiff_home(), *config.images.binds]
    own += [Path(key_file).parent] if key_file else []
    own += [packs] if packs else []
    found = [Bind(run_dir.absolute(), RUN), *map(at_own_path, own)]
    found += [Bind(packs.absolute(), PACKS)] if packs else []
    for source, inside in _only_read(config).items():
        found += _resolved(source, inside)
    return found


def trainer_variables(config: Config) -> dict[str, str]:
    """What the trainer's image gets of our environment, where it finds what the profile names, and
    the secrets."""
    moved = {str(source): str(inside) for source, inside in _only_read(config).items()}
    own = {"SKIFF_HOME": str(skiff_home()), BOUND: json.dumps(moved)}
    return passed_variables() | own | load_secrets()


def runtime_binds(config: Config, run_dir: Path) -> list[Bind]:
    """Every path that the runtime server reads or writes, but for podman's."""
    own = [run_dir, *config.images.binds]
    if config.runtime.backend == "apptainer":
        own += [apptainer_root(), skiff_home()]
        own += [config.runtime.sif_folder] if config.runtime.sif_folder else []
    return [Bind(run_dir.absolute(), RUN), *map(at_own_path, own)]


def _only_read(config: Config) -> dict[Path, Path]:
    """What of the profile a trainer only reads and is there, and its path inside."""
    tasks = config.tasks
    specs = (spec.partition(":") for spec in (*tasks.train, *tasks.validation))
    files = [Path(rest) for kind, _, rest in specs if kind in FILE_KINDS]
    files += [tasks.skip_list] if tasks.skip_list else []
    found = {path: DATA / str(n) / path.name for n, path in enumerate(dict.fromkeys(files))}
    if config.model.path != WARM_START:
        found[Path(config.model.path)] = MODEL
    return {path: inside for path, inside in found.items() if path.exists()}


def _resolved(source: Path, inside: Path) -> list[Bind]:
    """A file or folder without the links in its path. A folder with links that would lead nowhere
    inside, such as one of a hub's cache, is bound file by file."""
    real = source.resolve()
    entries = [path for path in real.rglob("*") if path.is_symlink() or path.is_file()]
    if not any(_leads_out(path, real) for path in entries):
        return [Bind(real, inside, read_only=True)]
    return [
        Bind(path.resolve(), inside / path.relative_to(real), read_only=True) for path in entries
    ]


def _leads_out(path: Path, folder: Path) -> bool:
    if not path.is_symlink():
        return False
    return path.readlink().is_absolute() or not path.resolve().is_relative_to(folder)
