"""The environment that the trainer's process tree starts with.

A launching shell carries things that break Ray or reach another job: a foreign Ray cluster, uv's
and virtualenv's variables (Ray would make the environment anew on each worker), Slurm's and PMI's
rank variables. They are left out; the rest passes.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Mapping
from pathlib import Path

from skiff.config.secrets import NAMES
from skiff.files import write_atomic

WANDB_ID = "wandb-id"

_DROPPED = ("RAY_", "UV_", "SLURM_", "PMI_", "PMIX_", "OMPI_", "WANDB_RUN")
_DROPPED_NAMES = {"VIRTUAL_ENV", "PYTHONPATH", "PYTHONHOME", "PYTHONSTARTUP", *NAMES}


def clean_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """`environ` without what must not reach the workers, and with our interpreter first in PATH.

    Secrets are dropped, too: the caller adds those that it has read from their own place.
    """
    kept = {
        name: value
        for name, value in environ.items()
        if name not in _DROPPED_NAMES and not name.startswith(_DROPPED)
    }
    kept["PATH"] = f"{Path(sys.executable).parent}:{environ.get('PATH', '/usr/bin:/bin')}"
    kept["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
    return kept


def wandb_environment(run_dir: Path, secrets: Mapping[str, str]) -> dict[str, str]:
    """What makes all attempts one run of W&B: an id that is kept in the run folder.

    Offline each attempt is a folder of its own with that id; `wandb sync --append` joins them.
    """
    kept = run_dir / "metrics" / WANDB_ID
    if not kept.exists():
        write_atomic(kept, uuid.uuid4().hex[:16] + "\n")
    return {
        "WANDB_MODE": "online" if "WANDB_API_KEY" in secrets else "offline",
        "WANDB_RUN_ID": kept.read_text().strip(),
        "WANDB_RESUME": "allow",
    }
