"""What Ray's workers see: our interpreter and our run, nothing of the launching shell's."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from skiff.config import Config
from skiff.processes import Child
from skiff.train.environment import clean_environment
from skiff.train.overrides import verl_environment

SECRET = "hunter2-hunter2"
SHELL = {
    "VIRTUAL_ENV": "/elsewhere/.venv",
    "UV_PROJECT_ENVIRONMENT": "/elsewhere/.venv",
    "UV_RUN_RECURSION_DEPTH": "1",
    "PYTHONPATH": "/elsewhere",
    "PYTHONHOME": "",
    "RAY_ADDRESS": "10.0.0.1:6379",
    "RAY_JOB_ID": "7",
    "SLURM_PROCID": "3",
    "SLURM_JOB_ID": "9",
    "PMI_RANK": "3",
    "PMIX_RANK": "3",
    "OMPI_COMM_WORLD_RANK": "3",
    "WANDB_RUN_ID": "other",
    "HF_TOKEN": SECRET,
    "WANDB_API_KEY": SECRET,
}
KEPT = {"HOME": "/home/someone", "LANG": "C.UTF-8", "SKIFF_RUNTIME_URL": "http://127.0.0.1:7"}

SCRIPT = """
import json, os, sys
import psutil, ray

ray.init(num_cpus=1, include_dashboard=False, object_store_memory=80_000_000, _temp_dir=sys.argv[1])

@ray.remote
def look():
    return {"env": dict(os.environ), "python": sys.executable, "path": sys.path}

found = ray.get(look.remote())
found["commands"] = [p.cmdline() for p in psutil.Process().children(recursive=True)]
with open(sys.argv[2] + ".part", "w") as file:
    json.dump(found, file)
os.rename(sys.argv[2] + ".part", sys.argv[2])
ray.shutdown()
"""


def test_the_shells_variables_are_left_out() -> None:
    cleaned = clean_environment({**SHELL, **KEPT, "PATH": "/usr/bin"})
    assert not set(SHELL) & set(cleaned)
    assert KEPT.items() <= cleaned.items()
    assert cleaned["PATH"] == f"{Path(sys.executable).parent}:/usr/bin"
    assert SECRET not in cleaned.values()


def test_a_path_is_made_where_none_is() -> None:
    assert clean_environment({})["PATH"].endswith(":/usr/bin:/bin")


@pytest.fixture
def short_folder() -> Iterator[Path]:
    """Ray's sockets have no room for pytest's long paths."""
    folder = Path(tempfile.mkdtemp(prefix="skiff-ray-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder)


def test_a_real_worker_sees_the_run(
    runtime_config: Callable[..., Config], tmp_path: Path, short_folder: Path
) -> None:
    token = short_folder / "token"
    token.write_text("0" * 64)
    token.chmod(0o600)
    config = runtime_config(hardware={"platform": "cpu", "dtype": "float32"})
    environment = {
        **clean_environment({**os.environ, **SHELL, **KEPT}),
        **verl_environment(config, tmp_path),
        "HF_TOKEN": SECRET,
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
    }
    (tmp_path / "script.py").write_text(SCRIPT)
    out, log = tmp_path / "out.json", tmp_path / "log"
    command = [sys.executable, str(tmp_path / "script.py"), str(short_folder), str(out)]
    with Child(command, environment, log) as child:
        deadline = time.monotonic() + 120
        while child.returncode is None and time.monotonic() < deadline:
            time.sleep(0.05)
    assert child.returncode == 0, log.read_text()
    found = json.loads(out.read_text())
    worker = found["env"]
    assert worker["SKIFF_RUN"] == str(tmp_path)
    assert worker["SKIFF_RUNTIME_URL"] == KEPT["SKIFF_RUNTIME_URL"]
    assert worker["VERL_PLATFORM"] == "cpu"
    assert worker["HF_TOKEN"] == SECRET
    # No environment was made anew: the worker runs our interpreter.
    assert found["python"] == sys.executable
    assert "VIRTUAL_ENV" not in worker
    assert not [name for name in worker if name.startswith(("UV_", "SLURM_", "PMI"))]
    assert "/elsewhere" not in found["path"]
    assert found["commands"]
    assert SECRET not in json.dumps(found["commands"])
