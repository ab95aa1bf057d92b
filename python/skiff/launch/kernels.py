"""`skiff kernels build` and `verify --strict`: a pack made, or proved, by the real trainer here.

On a node with the GPU that the pack is for. The trainer half runs twice, in its image: the first
start compiles everything, the second has to find it all. Only then is the pack put among others.
Not covered: submitting it; sbatch/kernels.sbatch does.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

from rich.console import Console

from skiff.config import Config, load_run_config
from skiff.errors import ConfigError, InfraError
from skiff.kernels.packs import PROFILE, read_pack
from skiff.launch import run_folder
from skiff.launch.local import ENTRYPOINTS, POLL_SECONDS, Halves, in_order, last_error
from skiff.train.inputs import check_inputs
from skiff.train.kernels import PACK, Use, pack_name

STEPS = 2  # the second update meets tensors of other lengths than the first


def build(config: Config, console: Console, *, entrypoints: Path = ENTRYPOINTS) -> Path:
    """Make a pack for this GPU and profile in kernels.packs; returns its folder.

    Raises ConfigError, InfraError; then no pack is left there.
    """
    packs = config.kernels.packs
    if packs is None:
        raise ConfigError("is not set", where="kernels.packs", remedy="name a folder for packs")
    packs.mkdir(parents=True, exist_ok=True)
    run_dir = _make_run(config, "kernels", console)
    for use in (Use.BAKE, Use.PROOF):
        _start(run_dir, use, console, entrypoints)
    made = read_pack(run_dir / PACK)
    target = packs / pack_name(config, made.manifest.facts)
    if target.exists():
        raise InfraError(
            "exists already", where=str(target), remedy="use it, or remove it and build again"
        )
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=packs) as scratch:
        copy = Path(shutil.copytree(made.path, Path(scratch, target.name)))
        copy.rename(target)
    return target


def prove(pack: Path, console: Console, *, entrypoints: Path = ENTRYPOINTS) -> None:
    """Start the engine and the trainer that `pack` was made for, and see that nothing is compiled.

    Raises InfraError naming each kernel that was, ConfigError when it does not say what made it.
    """
    profile = pack / PROFILE
    if not profile.is_file():
        raise ConfigError(
            f"has no {PROFILE}", where=str(pack), remedy="build it with `skiff kernels build`"
        )
    run_dir = _make_run(load_run_config(profile), "proof", console)
    shutil.copytree(pack, run_dir / PACK)
    _start(run_dir, Use.PROOF, console, entrypoints)


def _make_run(config: Config, kind: str, console: Console) -> Path:
    small = _short(config, f"{config.run.name[:56]}-{kind}")
    check_inputs(small)
    run_dir = run_folder.make(small)
    console.print(f"run folder: {run_dir}", markup=False, soft_wrap=True)
    return run_dir


def _short(config: Config, name: str) -> Config:
    """The profile's engine and trainer, a few steps, and nothing beside them."""
    train = {"steps": STEPS, "validate_every": 0, "validate_first": False, "save_every": 0}
    changes = {
        "run": {"name": name},
        "train": {**train, "export": False},
        "runtime": {"url": None},
        "logging": {"wandb": False, "tensorboard": False},
    }
    sections = {
        name: getattr(config, name).model_copy(update=update) for name, update in changes.items()
    }
    return config.model_copy(update=sections)


def _start(run_dir: Path, use: Use, console: Console, entrypoints: Path) -> None:
    config = run_folder.read_config(run_dir)
    number = run_folder.new_attempt(run_dir)
    begun = time.monotonic()
    with (
        console.status(f"{use.value}: engine and trainer start"),
        in_order(Halves(config, run_dir, number, entrypoints)) as halves,
    ):
        halves.start("train", "--attempt", str(number), "--kernels", use.value)
        while (code := halves.running["train"].returncode) is None:
            time.sleep(POLL_SECONDS)
    log = halves.log("train")
    if code != 0:
        raise InfraError(
            last_error(log) or f"exit code {code}",
            where=f"kernels {use.value}",
            remedy=f"logs: {run_dir / 'logs'}",
        )
    console.print(f"{use.value}: {time.monotonic() - begun:.0f} s", markup=False)
