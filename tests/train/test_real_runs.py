"""Real runs: verl's main_ppo, vLLM, podman sandboxes and both halves, with a random tiny model.

Each takes minutes, nearly all of it imports, so they cover as much as they can: GRPO with the mini
agent and a kill -9 in between; PPO with critic, reference policy and the OpenHands agent; a runtime
server that dies under a rollout.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from skiff import events
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.errors import InfraError
from skiff.launch import local, run_folder
from skiff.train import resume, tiny

TINY = Path(__file__).parents[1] / "tiny.toml"

pytestmark = [pytest.mark.timeout(1500), pytest.mark.usefixtures("debian_image")]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random tiny Qwen3 whose tokenizer knows the words of the shell tasks."""
    folder = tmp_path_factory.mktemp("model")
    tiny.make_shell_model(folder)
    return str(folder)


@pytest.fixture
def make_config(model: str, tmp_path: Path) -> Callable[..., Config]:
    """`make_config(train={...})`: two small steps on the CPU."""

    def make(**sections: dict[str, Any]) -> Config:
        data: dict[str, dict[str, Any]] = tomllib.loads(TINY.read_text())
        data["run"] = {"name": "real", "folder": str(tmp_path)}
        data["model"]["path"] = model
        data["tasks"]["train_limit"] = 16
        data["train"] |= {"steps": 2, "save_every": 1, "export": False}
        for name, values in sections.items():
            data.setdefault(name, {}).update(values)
        return parse_config(data)

    return make


def of_kind(run_dir: Path, kind: str, **wanted: object) -> list[dict[str, Any]]:
    return [
        event
        for event in events.read(run_dir, kind)
        if all(event[name] == value for name, value in wanted.items())
    ]


def ready_sandboxes(run_dir: Path) -> int:
    place = json.loads((run_dir / "rendezvous" / "runtime.json").read_text())
    return int(httpx.get(f"{place['url']}/health", timeout=30).json()["sandboxes"]["ready"])


def child(entry_point: str, run_dir: Path) -> psutil.Process:
    """The living half of this run that runs this entry point; other tests have servers too."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):  # a zombie is one that is gone
            words = process.cmdline()
            runs_it = any(word.endswith(entry_point) for word in words)
            if runs_it and str(run_dir / "config.toml") in words:
                return process
    raise LookupError(entry_point)


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    """No process of a run may outlive it: none of ours is left that was not there before."""
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    yield
    left = [
        process.info["cmdline"]
        for process in psutil.process_iter(["pid", "cmdline", "status"])
        if process.info["pid"] not in before
        and process.info["status"] != psutil.STATUS_ZOMBIE
        and any(parent.pid == os.getpid() for parent in process.parents())
    ]
    assert left == []


def test_grpo_with_mini_resumes_after_kill_9(make_config: Callable[..., Config]) -> None:
    config = make_config(train={"validate_every": 2, "export": True})
    run_dir = run_folder.make(config)

    killed = []

    def kill_after_first_checkpoint() -> None:
        if not killed and of_kind(run_dir, "checkpoint", step=1):
            trainer = child("entrypoints/train", run_dir)
            killed.append(trainer.pid)
            trainer.kill()

    with nothing_left():
        attempt = run_folder.new_attempt(run_dir)
        with pytest.raises(InfraError):
            local.run_attempt(config, run_dir, attempt, watch=kill_after_first_checkpoint)
    assert killed
    assert resume.complete_steps(run_dir / "ckpt") == [1]
    assert [event["step"] for event in of_kind(run_dir, "step")] in ([], [1])

    begun = time.time()
    with nothing_left():
        attempt = run_folder.new_attempt(run_dir)
        local.run_attempt(config, run_dir, attempt, watch=lambda: None)

    assert attempt == 2
    assert resume.complete_steps(run_dir / "ckpt") == [1, 2]
    second = [line for line in of_kind(run_dir, "step") if line["step"] == 2]
    assert len(second) == 1
    # The engine and the trainer agree on the policy: new weights reach the engine.
    assert second[0]["metrics"]["rollout_probs_diff_mean"] < 1e-3
    # The first trainer may have begun step 2 before it was killed.
    trained = [
        event
        for event in of_kind(run_dir, "trajectory", split="train", step=2)
        if event["time"] > begun
    ]
    assert len(trained) == 4
    assert all(event["reward"] in (0.0, 1.0) for event in trained)
    assert of_kind(run_dir, "validation", step=2, graded=2, masked=0)
    assert (run_dir / "model" / "policy" / "config.json").is_file()
    assert list((run_dir / "metrics" / "tensorboard").glob("events.*"))


def test_ppo_with_openhands(make_config: Callable[..., Config]) -> None:
    config = make_config(
        agent={"name": "openhands"},
        train={"algorithm": "ppo", "kl_coefficient": 0.01, "learning_rate": 1e-4},
        logging={"wandb": True},
    )
    run_dir = run_folder.make(config)
    with nothing_left():
        attempt = run_folder.new_attempt(run_dir)
        local.run_attempt(config, run_dir, attempt, watch=lambda: None)
    steps = of_kind(run_dir, "step")
    assert [event["step"] for event in steps] == [1, 2]
    assert all("critic_loss" in event["metrics"] for event in steps)
    assert all("kl_loss" in event["metrics"] for event in steps)
    trained = of_kind(run_dir, "trajectory", split="train")
    assert len(trained) == 8
    assert all(event["stop"] != "infra" and event["generated_tokens"] > 0 for event in trained)
    assert list((run_dir / "metrics" / "wandb").glob("offline-run-*"))  # no key: offline


def test_runtime_server_dies_in_mid_rollout(make_config: Callable[..., Config]) -> None:
    """Its trajectories are masked and counted, a new server takes over, and the run ends well."""
    config = make_config(
        rollout={"prompts_per_step": 8, "max_concurrent": 4},
        train={"steps": 1, "max_masked_share": 0.9},
    )
    run_dir = run_folder.make(config)
    stopped: list[tuple[psutil.Process, float]] = []
    killed = []

    def kill_the_server() -> None:
        """Stop it while sandboxes are in use, so that commands are in flight when it is killed."""
        if not stopped and len(of_kind(run_dir, "trajectory", split="train")) >= 2:
            if ready_sandboxes(run_dir):
                server = child("entrypoints/runtime", run_dir)
                server.suspend()
                stopped.append((server, time.monotonic()))
        elif stopped and not killed and time.monotonic() > stopped[0][1] + 5:
            killed.append(stopped[0][0].pid)
            stopped[0][0].kill()

    with nothing_left():
        attempt = run_folder.new_attempt(run_dir)
        local.run_attempt(config, run_dir, attempt, watch=kill_the_server)
    trained = of_kind(run_dir, "trajectory", split="train")
    masked = [event for event in trained if event["stop"] == "infra"]
    assert killed
    assert len(trained) == 16
    assert 0 < len(masked) < 16
    assert all(event["reward"] is None and event["detail"] for event in masked)
    assert of_kind(run_dir, "error", restart=1)
    assert of_kind(run_dir, "step")[0]["metrics"]["masked"] == len(masked)
