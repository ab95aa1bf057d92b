"""The replay buffer counts what was lost and never waits for ever. Only the queue is a stub."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from skiff.config import Config
from skiff.config.load import write_config
from skiff.errors import InfraError
from skiff.train import sampler
from skiff.train.sampler import GRACE_SECONDS, SkiffReplayBuffer, loss_sentence, time_limit

Configured = Callable[..., Config]


@dataclass
class Queue:
    """The part of TransferQueue that a replay buffer uses."""

    partitions: dict[str, dict[str, dict[str, Any]]] = field(default_factory=dict)

    def kv_list(self) -> dict[str, dict[str, dict[str, Any]]]:
        return self.partitions

    def kv_clear(self, partition_id: str, keys: list[str]) -> None:
        for key in keys:
            del self.partitions[partition_id][key]

    def add(self, uid: str, status: str, survivors: int, partition: str = "train") -> None:
        """A prompt and its surviving trajectories."""
        items = self.partitions.setdefault(partition, {})
        items[uid] = {"is_prompt": True, "global_steps": 1, "status": status}
        items |= {f"{uid}_{number}_0": {"seq_len": 3} for number in range(survivors)}


@pytest.fixture
def queue(monkeypatch: pytest.MonkeyPatch) -> Queue:
    stub = Queue()
    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.tq", stub)
    return stub


@pytest.fixture
def make_buffer(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., SkiffReplayBuffer]:
    def make(**sections: Any) -> SkiffReplayBuffer:
        rollout = {"trajectories_per_prompt": 4, "prompts_per_step": 2}
        write_config(runtime_config(rollout=rollout, **sections), tmp_path / "config.toml")
        monkeypatch.setenv("SKIFF_RUN", str(tmp_path))
        return SkiffReplayBuffer(
            trainer_mode="sync",
            trainer_config=OmegaConf.create(),
            max_off_policy_threshold=1,
            max_off_policy_strategy="drop",
            sampler_kwargs=OmegaConf.create(),
        )

    return make


def test_a_whole_batch_passes(queue: Queue, make_buffer: Any) -> None:
    queue.add("a", "finished", 4)
    queue.add("b", "finished", 4)
    batch, metrics = make_buffer().sample(1, "train", 2)
    assert len(batch.keys) == 8
    assert metrics["training/masked_trajectories"] == 0


def test_lost_trajectories_are_counted(queue: Queue, make_buffer: Any) -> None:
    queue.add("a", "finished", 3)
    queue.add("b", "failure", 2)
    batch, metrics = make_buffer().sample(1, "train", 2)
    assert len(batch.keys) == 5
    assert metrics["training/masked_trajectories"] == 3


def test_a_validation_has_its_own_size(queue: Queue, make_buffer: Any) -> None:
    queue.add("a", "finished", 1, "val")
    queue.add("b", "finished", 1, "val")
    _, metrics = make_buffer().sample(1, "val", 2)
    assert metrics["validation/masked_trajectories"] == 0


@pytest.mark.parametrize(
    ("survivors", "train", "words"),
    [
        (1, {}, "5 of 8 trajectories failed .* more than train.max_masked_share"),
        (3, {"on_infra_failure": "stop"}, "3 of 8 .* train.on_infra_failure = 'stop'"),
        (0, {"max_masked_share": 1.0}, "all 8 trajectories failed"),
    ],
)
def test_too_great_a_loss_ends_the_run(
    queue: Queue, make_buffer: Any, survivors: int, train: dict[str, Any], words: str
) -> None:
    queue.add("a", "finished", survivors)
    queue.add("b", "finished", 2 if survivors else 0)
    with pytest.raises(InfraError, match=words):
        make_buffer(train=train).sample(1, "train", 2)


def test_other_errors_of_verl_pass(
    queue: Queue, make_buffer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        raise RuntimeError("the queue is gone")

    monkeypatch.setattr(queue, "kv_list", fail)
    with pytest.raises(RuntimeError, match="the queue is gone"):
        make_buffer().sample(1, "train", 2)


def test_a_prompt_without_result_ends_the_run_at_the_deadline(
    queue: Queue, make_buffer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [1000.0]
    monkeypatch.setattr(sampler.time, "monotonic", lambda: now[0])

    def sleep(seconds: float) -> None:
        now[0] += 100

    monkeypatch.setattr("verl.trainer.ppo.v1.replay_buffer.time.sleep", sleep)
    queue.add("a", "finished", 4)
    queue.add("b", "running", 1)
    queue.add("c", "pending", 0)
    with pytest.raises(InfraError, match=r"2 prompts have no result .* = 1200"):
        make_buffer().sample(1, "train", 2)
    assert now[0] == pytest.approx(1000 + 1200 + GRACE_SECONDS, abs=101)


def test_trajectories_run_in_waves(runtime_config: Configured) -> None:
    config = runtime_config(rollout={"agent_workers": 2, "max_concurrent": 4})
    seconds = config.agent.trajectory_seconds
    assert time_limit(config, 1) == time_limit(config, 8) == seconds + GRACE_SECONDS
    assert time_limit(config, 9) == 2 * seconds + GRACE_SECONDS


def test_the_share_itself_is_allowed(runtime_config: Configured) -> None:
    config = runtime_config(train={"max_masked_share": 0.25})
    assert loss_sentence(config, 8, 2) == ""
    assert "3 of 8" in loss_sentence(config, 8, 3)
    assert loss_sentence(runtime_config(train={"on_infra_failure": "stop"}), 8, 0) == ""
