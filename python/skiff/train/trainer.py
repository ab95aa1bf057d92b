"""The trainer half of a run: data, warm start, verl's stock `main_ppo`, export.

`train` is what `entrypoints/train` calls. It runs `python -m verl.trainer.main_ppo` as a child that
brings up its own Ray, follows its metrics into events.jsonl, publishes its checkpoints, and leaves
nothing of it behind. A transient failure is tried again (retry.py). Where the trainer has several
nodes, the first one does all this, and the others lend it their Ray (ray_cluster.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from skiff import events
from skiff.attempts import attempt_folder
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
from skiff.train.data import TASKS, write_data
from skiff.train.environment import clean_environment, wandb_environment
from skiff.train.gpu_watch import watch_gpus
from skiff.train.inputs import WARM_START, check_attention, check_places, model_folder
from skiff.train.kernels import Kernels, place_kernels
from skiff.train.metrics import Follower
from skiff.train.overrides import AGENT_LOOP, verl_environment, verl_overrides
from skiff.train.publish import Publisher
from skiff.train.ray_cluster import join, ray_of, token_variables
from skiff.train.retry import TransientError, failure_told, with_retries
from skiff.train.save_request import SAVED, VARIABLE, SaveRequest, request_file
from skiff.train.scratch import scratch

LOOP = "skiff.train.agent_loop.SkiffAgentLoop"
RENDEZVOUS_SECONDS = 120.0
POLL_SECONDS = 0.2
SERVER_VARIABLES = (FOLDER_VARIABLE, KEY_FILE_VARIABLE, URL_VARIABLE)


def train(config_file: Path, rendezvous: Path, *, attempt: int) -> int:
    """Train until train.steps, from the newest whole checkpoint. Raises SkiffError.

    Returns the exit status: 0, or SAVED when it was asked to save and end before.
    """
    config = load_run_config(config_file)
    run_dir = config_file.absolute().parent
    check_attention(config)
    secrets = load_secrets()
    kernels: Kernels | None = None

    def once(number: int) -> int:
        nonlocal kernels
        with phase(run_dir, "runtime"):
            find_runtime(config, rendezvous)
            asyncio.run(check_key(config))
        if not (run_dir / "data" / TASKS).exists():
            with phase(run_dir, "tasks"):
                write_data(config, run_dir / "data")
        write_agent_loop(run_dir)
        model = resolve_model(config, run_dir)
        begun = resume.settle(run_dir)
        if begun >= config.train.steps:
            return 0
        if kernels is None:  # a second start finds what the first has compiled
            kernels = place_kernels(config, run_dir, model, attempt=attempt)
        code = run_verl(config, run_dir, model, secrets, Start(attempt, number, begun), kernels)
        kernels.ended()
        return code

    code = with_retries(run_dir, once, lambda: resume.newest(run_dir))
    if code == 0 and config.train.export:
        with phase(run_dir, "export"):
            export(run_dir)
    return code


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


async def check_key(config: Config) -> None:
    """Ask the servers that `find_runtime` has named whether they take our key. Raises ConfigError
    when they refuse it, InfraError when none answers."""
    async with RuntimeClient.from_env(start_seconds=config.runtime.start_seconds) as client:
        await client.check_key()


def _published(rendezvous: Path) -> list[Path]:
    if rendezvous.is_dir():
        return sorted(rendezvous.glob(PATTERN))
    return [rendezvous] if rendezvous.exists() else []


def write_agent_loop(run_dir: Path, target: str = LOOP) -> None:
    """The file through which verl finds our agent loop."""
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


@dataclass(frozen=True)
class Start:
    """One start of verl: the run's attempt, the try within it, and the step it goes on from."""

    attempt: int
    number: int
    begun: int

    @property
    def name(self) -> str:
        """Stands in the names of its files."""
        verl = "verl" if self.number == 1 else f"verl-{self.number}"
        return f"{verl}.{self.attempt:02d}"


def run_verl(
    config: Config,
    run_dir: Path,
    model: str,
    secrets: dict[str, str],
    start: Start,
    kernels: Kernels,
) -> int:
    """One run of main_ppo to its end: 0, or SAVED when it was asked to save and end.

    Raises InfraError with the cause.
    """
    (run_dir / "metrics").mkdir(exist_ok=True)
    log = run_dir / "logs" / f"{start.name}.log"
    metrics = run_dir / "metrics" / f"{start.name}.jsonl"
    overrides = [*verl_overrides(config, run_dir, model), *kernels.overrides]
    if start.begun:
        overrides.append("trainer.val_before_train=false")
    request = request_file(run_dir, start.attempt)
    variables = {  # on every node
        **{name: os.environ[name] for name in SERVER_VARIABLES if name in os.environ},
        **verl_environment(config, run_dir),
        **kernels.environment,
        **wandb_environment(run_dir, secrets),
        "VERL_FILE_LOGGER_PATH": str(metrics),
        VARIABLE: str(request),
    }
    environment = {
        **clean_environment(dict(os.environ)),
        **variables,
        **secrets,
    }
    listed = attempt_folder(run_dir, start.attempt) / "verl.txt"
    with scratch() as folder:
        token = folder / "token"
        write_atomic(token, os.urandom(32).hex(), mode=0o600)
        environment |= token_variables(token)
        temp_dir = folder / "ray"
        with (
            ray_of(config, run_dir, start.attempt, environment, variables, temp_dir) as ray,
            watched_gpus(config, run_dir),
        ):
            overrides += [f"hydra.run.dir={folder / 'hydra'}", ray]
            write_atomic(listed, "\n".join(overrides) + "\n")
            command = [sys.executable, "-m", "verl.trainer.main_ppo", *overrides]
            with Child(command, environment, log) as child:
                progress(run_dir, "starting Ray, engine and trainer", 0.0)
                saved = follow(config, run_dir, child, metrics, SaveRequest(request), start)
    if saved:
        return SAVED
    if child.returncode == -signal.SIGKILL:  # of which its log says nothing
        raise TransientError(
            "was killed by SIGKILL: by the kernel, when the memory is used up, or by somebody",
            why="a new start has the memory again",
            where="verl",
            remedy=f"log: {log}",
        )
    if child.returncode != 0:
        raise failure_told(log, f"verl ended with exit code {child.returncode}")
    return 0


def help_train(config_file: Path, *, attempt: int, node: int) -> None:
    """Be another node of the trainer, number `node` from 1, until SIGTERM. Raises SkiffError."""
    config = load_run_config(config_file)
    run_dir = config_file.absolute().parent
    environment = {**clean_environment(dict(os.environ)), **load_secrets()}
    if config.model.path != WARM_START:  # which has no GPU, and is made only by the first node
        model = str(model_folder(config))
        environment |= place_kernels(config, run_dir, model, attempt=attempt).environment
    join(config, run_dir, attempt, node, environment)


def follow(
    config: Config,
    run_dir: Path,
    child: Child,
    metrics: Path,
    request: SaveRequest,
    start: Start,
) -> bool:
    """Watch verl until it ends, or until it has saved as requested (True)."""
    follower = Follower(run_dir, metrics, begun=start.begun)
    keep = config.train.keep_checkpoints
    with Publisher(run_dir, keep=keep, newest=start.begun) as publisher:
        while child.returncode is None:
            follower.follow()
            publisher.look()
            if request.carried_out(logged=follower.step, published=publisher.newest):
                return True
            time.sleep(POLL_SECONDS)
        follower.follow()
    return False


def watched_gpus(config: Config, run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """Watch the GPUs of this node where there are some."""
    if config.hardware.platform != "cuda":
        return contextlib.nullcontext()
    return watch_gpus(run_dir)


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
