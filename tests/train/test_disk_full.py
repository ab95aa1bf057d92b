"""A real full disk under the checkpoints: the trainer, but for verl itself, on a small tmpfs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skiff import events
from skiff.config import Config
from skiff.config.load import write_config

# Three checkpoints do not fit at first. A mount is seen in its namespace only: all happens there.
PROGRAM = """
import json, os, pathlib, subprocess, sys, types
from skiff.errors import InfraError
from skiff.train import resume, trainer

run, rendezvous, verl = map(pathlib.Path, sys.argv[1:])
def mount(*options):
    subprocess.run(["mount", "-t", "tmpfs", *options, "tmpfs", run / "ckpt"], check=True)

mount("-o", "size=800k")
os.environ |= {"STAND_IN_BYTES": "300000", "STAND_IN_SECONDS": "1"}
trainer.sys = types.SimpleNamespace(executable=str(verl))
try:
    first = trainer.train(run / "config.toml", rendezvous, attempt=1)
except InfraError as error:
    first = error.what
found = [first, resume.complete_steps(run / "ckpt")]
mount("-o", "remount,size=10m")
found += [trainer.train(run / "config.toml", rendezvous, attempt=2)]
print(json.dumps([*found, resume.complete_steps(run / "ckpt")]))
"""
ALONE = ["unshare", "--user", "--map-root-user", "--mount"]


def test_a_full_disk_ends_the_run_and_more_space_lets_it_go_on(
    runtime_config: Callable[..., Config], tmp_path: Path, runtime_server: Any, tiny_model: str
) -> None:
    run = tmp_path / "run"
    for name in ("logs", "attempts/01", "attempts/02", "ckpt", "data"):
        (run / name).mkdir(parents=True)
    config = runtime_config(
        model={"path": tiny_model},
        train={"steps": 4, "save_every": 1, "keep_checkpoints": 3, "export": False},
    )
    write_config(config, run / "config.toml")
    verl = Path(__file__).parent / "main_ppo"
    rendezvous = runtime_server.folder / "runtime.json"
    command = [*ALONE, sys.executable, "-c", PROGRAM, run, rendezvous, verl]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert json.loads(printed.splitlines()[-1]) == [
        "the disk is full (No space left on device)",
        [1, 2],
        0,
        [2, 3, 4],
    ]
    assert "the checkpoint of step 3 is not used: it was not saved to its end\n" in printed
    assert [event["step"] for event in events.read(run, "checkpoint_skipped")] == [3]
    assert [event["step"] for event in events.read(run, "step")] == [1, 2, 3, 4]
    assert list(events.read(run, "retry")) == []
