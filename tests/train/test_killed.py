"""The trainer's part of checkpoints is killed at random points, many times: verl is a stand-in
(main_ppo), which dies with it in the middle of what it writes. benchmarks/drills has a real run."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import psutil
from skiff import events
from skiff.train.manifest import fault
from skiff.train.resume import checkpoint, settle

KILLS = 12
PROGRAM = """
import json, os, pathlib, sys, time
from skiff.processes import Child
from skiff.train.publish import Publisher
from skiff.train.resume import settle

run, verl = map(pathlib.Path, sys.argv[1:])
begun = settle(run)
folder = json.dumps(str(run / "ckpt"))
options = [f"trainer.default_local_dir={folder}", "trainer.total_training_steps=100000"]
command = [str(verl), "-m", "verl", *options, "trainer.save_freq=1"]
with Child(command, os.environ, run / "log") as child:
    with Publisher(run, keep=2, newest=begun) as publisher:
        while child.returncode is None:
            publisher.look()
            time.sleep(0.005)
"""


def test_a_start_after_a_kill_has_a_whole_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "ckpt").mkdir()
    chance = random.Random(0)
    environment = {
        **os.environ,
        "SKIFF_SAVE_REQUEST": str(tmp_path / "never"),
        "STAND_IN_BYTES": "20000000",
        "VERL_FILE_LOGGER_PATH": str(tmp_path / "metrics"),
    }
    verl = Path(__file__).parent / "main_ppo"
    reached = 0
    for _ in range(KILLS):
        program = subprocess.Popen([sys.executable, "-c", PROGRAM, tmp_path, verl], env=environment)
        try:
            until_published(tmp_path, reached)
            time.sleep(chance.uniform(0, 0.3))
        finally:
            program.kill()
            program.wait()
        until_gone(tmp_path)
        before, reached = reached, settle(tmp_path)
        assert reached > before
        assert fault(checkpoint(tmp_path / "ckpt", reached)) == ""
    assert list(events.read(tmp_path, "checkpoint_skipped"))  # some were torn
    assert not list((tmp_path / "ckpt").glob("damaged_*"))  # none was published before it was whole


def until_published(run: Path, step: int) -> None:
    deadline = time.monotonic() + 30
    while not any(event["step"] > step for event in events.read(run, "checkpoint")):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def until_gone(run: Path) -> None:
    """Nothing of it writes any more."""
    for process in psutil.process_iter(["cmdline"]):
        if str(run) in " ".join(process.info["cmdline"] or []):
            process.wait(30)
