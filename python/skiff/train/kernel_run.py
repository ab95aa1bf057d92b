"""A short start of the real trainer that makes a pack of compiled kernels, or proves one enough.

It is verl with its engine, workers and weight transfers as in training; only the agent is another
one (kernel_loop.py), so that no sandbox and no runtime server is needed. `skiff kernels build`
makes the run folder and calls this twice by `entrypoints/train --kernels`. Not covered: warm
starts, whose model is made in a run.
"""

from __future__ import annotations

from pathlib import Path

from skiff.config import load_run_config
from skiff.errors import ConfigError
from skiff.train.data import TASKS, write_data
from skiff.train.inputs import WARM_START, check_attention, model_folder
from skiff.train.kernels import Use, place_kernels
from skiff.train.trainer import Start, phase, run_verl, write_agent_loop

LOOP = "skiff.train.kernel_loop.KernelLoop"


def run_kernels(config_file: Path, *, attempt: int, use: Use) -> None:
    """Train without an agent, from a run folder's config. Raises SkiffError."""
    config = load_run_config(config_file)
    run_dir = config_file.absolute().parent
    if config.model.path == WARM_START:
        raise ConfigError(
            f"is {WARM_START!r}", where="model.path", remedy="name the folder of a model"
        )
    check_attention(config)
    if not (run_dir / "data" / TASKS).exists():
        write_data(config, run_dir / "data")
    write_agent_loop(run_dir, LOOP)
    model = str(model_folder(config))
    with phase(run_dir, f"kernels_{use.value}"):
        kernels = place_kernels(config, run_dir, model, attempt=attempt, use=use)
        run_verl(config, run_dir, model, {}, Start(attempt, 1, begun=0), kernels)
        kernels.ended()
