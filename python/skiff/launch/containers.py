"""How an entry point is started: from this clone, or inside its SIF by `apptainer run`.

Inside, the same arguments hold: every path that a config names is bound to itself. The image gets
an empty environment but for what is passed here, no home, and /tmp on a disk of this node; secrets
travel as variables of the process, never as arguments.

Not covered: GPUs other than NVIDIA's.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.apptainer import apptainer_environment, apptainer_root, find_apptainer
from skiff.config import Config
from skiff.config.secrets import load_secrets, without_secrets
from skiff.kernels.variables import ROOT
from skiff.sandbox.client import KEY_FILE_VARIABLE
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


def clone_program(script: Path, arguments: Sequence[str], *, secrets: bool) -> Program:
    """An entry point of this clone; `secrets`: with those of our environment."""
    environment = dict(os.environ) if secrets else without_secrets(os.environ)
    return Program([sys.executable, str(script), *arguments], environment)


def sif_program(
    image: Path,
    arguments: Sequence[str],
    *,
    binds: Iterable[Path],
    readable: Iterable[Path] = (),
    scratch: Path,
    variables: Mapping[str, str],
    gpus: bool = False,
) -> Program:
    """The entry point of an image: a SIF, or one that is unpacked in a folder.

    `binds` appear at their own paths, `readable` do so read-only, `scratch` is /tmp.
    With `gpus` the host's NVIDIA driver and devices are bound, too, and an empty folder for
    compiled kernels.
    """
    modes = {path.absolute(): ":ro" for path in readable if path.exists()}
    modes |= {path.absolute(): "" for path in binds if path.exists()}
    paths = sorted(modes)
    for path in paths:  # a place below /tmp must exist in what is bound to /tmp
        if path.is_relative_to("/tmp"):
            (scratch / path.relative_to("/tmp")).mkdir(parents=True, exist_ok=True)
    options = [
        f"--bind={scratch}:/tmp",
        "--bind=/dev/shm",
        *(f"--bind={path}:{path}{modes[path]}" for path in paths),
    ]
    isolated = ["--userns", "--contain", "--cleanenv", "--no-home", "--pwd=/tmp"]
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


def trainer_binds(config: Config, run_dir: Path) -> list[Path]:
    """Every path that the trainer reads or writes."""
    named = [config.model.path] if config.model.path != WARM_START else []
    specs = (*config.tasks.train, *config.tasks.validation)
    files = [Path(rest).parent for _, _, rest in (spec.partition(":") for spec in specs) if rest]
    key_file = os.environ.get(KEY_FILE_VARIABLE)
    found = [run_dir, skiff_home(), *map(Path, named), *config.images.binds]
    found += [folder for folder in files if folder.is_absolute()]
    found += [config.kernels.packs] if config.kernels.packs else []
    return found + ([Path(key_file).parent] if key_file else [])


def trainer_variables() -> dict[str, str]:
    """What the trainer's image gets of our environment, and the secrets."""
    return passed_variables() | {"SKIFF_HOME": str(skiff_home())} | load_secrets()


def runtime_binds(config: Config, run_dir: Path) -> list[Path]:
    """Every path that the runtime server reads or writes, but for podman's socket."""
    if config.runtime.backend == "podman":
        return [run_dir, *config.images.binds]
    sifs = config.runtime.sif_folder
    found = [run_dir, apptainer_root(), skiff_home(), *config.images.binds]
    return found + ([sifs] if sifs else [])
