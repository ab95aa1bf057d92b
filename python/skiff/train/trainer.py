"""The trainer half of a run: data, warm start, verl's stock `main_ppo`, export.

`train` is what `entrypoints/train` calls. It runs `python -m verl.trainer.main_ppo` as a child that
brings up its own Ray, follows its metrics into events.jsonl, and leaves nothing of it behind.
Not covered: a Ray cluster over several nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from skiff import events
from skiff.config import Config, load_run_config
from skiff.config.secrets import load_secrets
from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.processes import Child
from skiff.sandbox.client import (
    FOLDER_VARIABLE,
    KEY_FILE_VARIABLE,
    URL_VARIABLE,
    RuntimeClient,
)
from skiff.sandbox.nodes import PATTERN
from skiff.train import resume
from skiff.train.causes import cause_of
from skiff.train.data import TASKS, write_data
from skiff.train.environment import clean_environment
from skiff.train.inputs import WARM_START, check_attention, check_places, model_folder
from skiff.train.metrics import Follower
from skiff.train.overrides import AGENT_LOOP, verl_environment, verl_overrides

RENDEZVOUS_SECONDS = 120.0
POLL_SECONDS = 0.2


def train(config_file: Path, rendezvous: Path, *, attempt: int) -> None:
    """Train until train.steps, from the newest whole checkpoint. Raises SkiffError."""
    config = load_run_config(config_file)
    run_dir = config_file.absolute().parent
    check_attention(config)
    secrets = load_secrets()
    with phase(run_dir, "runtime"):
        find_runtime(config, rendezvous)
    if not (run_dir / "data" / TASKS).exists():
        with phase(run_dir, "tasks"):
            write_data(config, run_dir / "data")
    write_agent_loop(run_dir)
    model = resolve_model(config, run_dir)
    begun = resume.settle(run_dir / "ckpt")
    if begun < config.train.steps:
        run_verl(config, run_dir, model, secrets, attempt=attempt, begun=begun)
    if config.train.export:
        with phase(run_dir, "export"):
            export(run_dir)


@contextlib.contextmanager
def phase(run_dir: Path, name: str) -> Iterator[None]:
    """Record a phase of the run: its begin, and its seconds when it ended well."""
    begun = time.monotonic()
    events.emit(run_dir, "phase_begin", name=name)
    yield
    events.emit(run_dir, "phase", name=name, seconds=round(time.monotonic() - begun, 2))


def find_runtime(config: Config, rendezvous: Path) -> None:
    """Name the runtime server to this process tree: runtime.url, or what `rendezvous` says. That is
    a file, or a folder into which several servers write theirs; one of them is enough to begin.

    The key travels as the path of its 0600 file, never as a value; that of runtime.url stands in
    the environment. Raises InfraError when no rendezvous file appears in time.
    """
    check_places(config)
    os.environ.pop(FOLDER_VARIABLE, None)  # of another run: it would win
    if config.runtime.url is not None:
        os.environ[URL_VARIABLE] = config.runtime.url
        return
    deadline = time.monotonic() + RENDEZVOUS_SECONDS
    while not (found := _published(rendezvous)):
        if time.monotonic() > deadline:
            raise InfraError(
                f"no runtime server appeared within {RENDEZVOUS_SECONDS:g} s",
                where=str(rendezvous),
                remedy="its log is beside the trainer's in the run folder's logs/",
            )
        time.sleep(POLL_SECONDS)
    place = json.loads(found[0].read_text())
    if rendezvous.is_dir():
        os.environ[FOLDER_VARIABLE] = str(rendezvous)
    else:
        os.environ[URL_VARIABLE] = place["url"]
    os.environ[KEY_FILE_VARIABLE] = place["key_file"]


def _published(rendezvous: Path) -> list[Path]:
    if rendezvous.is_dir():
        return sorted(rendezvous.glob(PATTERN))
    return [rendezvous] if rendezvous.exists() else []


def write_agent_loop(run_dir: Path) -> None:
    """The file through which verl finds our agent loop."""
    target = "skiff.train.agent_loop.SkiffAgentLoop"
    text = json.dumps([{"name": AGENT_LOOP, "_target_": target}])  # JSON is YAML, too
    write_atomic(run_dir / "data" / "agent_loop.yaml", text)


def resolve_model(config: Config, run_dir: Path) -> str:
    """The policy's Hugging Face folder; makes it when the profile asks for a warm start."""
    if config.model.path != WARM_START:
        return str(model_folder(config))
    folder = run_dir / "model" / WARM_START
    if not folder.exists():
        from skiff.train.warm_start import warm_start

        with phase(run_dir, "warm_start"), tempfile.TemporaryDirectory(dir=run_dir) as scratch:
            made = Path(scratch) / WARM_START
            made.mkdir()
            client = RuntimeClient.from_env(start_seconds=config.runtime.start_seconds)
            warm_start(config, client, made, lambda what, share: progress(run_dir, what, share))
            folder.parent.mkdir(exist_ok=True)
            made.rename(folder)
    return str(folder)


def progress(run_dir: Path, what: str, share: float) -> None:
    """One line of live progress within a phase."""
    events.emit(run_dir, "progress", what=what, share=round(share, 3))


def run_verl(
    config: Config,
    run_dir: Path,
    model: str,
    secrets: dict[str, str],
    *,
    attempt: int,
    begun: int,
) -> None:
    """One run of main_ppo from step `begun` to its end. Raises InfraError with the cause."""
    (run_dir / "metrics").mkdir(exist_ok=True)
    log = run_dir / "logs" / f"verl.{attempt:02d}.log"
    metrics = run_dir / "metrics" / f"verl.{attempt:02d}.jsonl"
    # Ray's sockets need a short, node-local path.
    scratch = Path(tempfile.mkdtemp(prefix="skiff-ray-", dir="/tmp"))
    token = scratch / "token"
    write_atomic(token, os.urandom(32).hex(), mode=0o600)
    overrides = [
        *verl_overrides(config, run_dir, model),
        f"+ray_kwargs.ray_init._temp_dir={scratch}",
        "hydra.run.dir=" + str(scratch / "hydra"),
    ]
    if begun:
        overrides.append("trainer.val_before_train=false")
    environment = {
        **clean_environment(dict(os.environ)),
        **verl_environment(config, run_dir),
        **secrets,
        "VERL_FILE_LOGGER_PATH": str(metrics),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "WANDB_MODE": "online" if "WANDB_API_KEY" in secrets else "offline",
    }
    write_atomic(run_dir / "attempts" / f"{attempt:02d}" / "verl.txt", "\n".join(overrides) + "\n")
    command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
    follower = Follower(run_dir, metrics)
    try:
        with Child(command, environment, log) as child:
            progress(run_dir, "starting Ray, engine and trainer", 0.0)
            while child.returncode is None:
                follower.follow()
                time.sleep(POLL_SECONDS)
            follower.follow()
        if child.returncode != 0:
            raise InfraError(
                cause_of(log),
                where=f"verl ended with exit code {child.returncode}",
                remedy=f"log: {log}",
            )
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def export(run_dir: Path) -> None:
    """Write the newest checkpoint's policy to `model/policy` as a Hugging Face folder."""
    steps = resume.complete_steps(run_dir / "ckpt")
    if not steps:
        raise InfraError("no whole checkpoint to export", where=str(run_dir / "ckpt"))
    actor = run_dir / "ckpt" / f"global_step_{steps[-1]}" / "actor"
    target = run_dir / "model" / "policy"
    with tempfile.TemporaryDirectory(dir=run_dir) as scratch:
        made = Path(scratch) / "policy"
        command = [sys.executable, "-m", "verl.model_merger", "merge", "--backend", "fsdp"]
        command += ["--local_dir", str(actor), "--target_dir", str(made)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            words = (result.stderr.strip() or f"exit code {result.returncode}").splitlines()[-1]
            raise InfraError(f"verl.model_merger failed: {words}", where=str(actor))
        target.parent.mkdir(exist_ok=True)
        if target.exists():
            shutil.rmtree(target)
        made.rename(target)
