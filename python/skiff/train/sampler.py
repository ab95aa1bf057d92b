"""verl's replay buffer with a deadline, a quick poll and a word about lost trajectories.

Loaded through `trainer.v1.sampler.custom_sampler`. verl's own waits for ever (a dead agent worker
stalls training), polls every 2 s (which is a large part of a small step) and trains on whatever
survived without saying how much was lost.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from typing import Any

from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer

from skiff.config import Config, load_run_config
from skiff.errors import InfraError

POLL_SECONDS = 0.1
NOTHING_LEFT = "no materializable trajectories"  # verl's words
REMEDY = "see events.jsonl"
GRACE_SECONDS = 60.0  # Ray calls, decoding and queueing beside the trajectories' own deadlines


class SkiffReplayBuffer(ReplayBuffer):
    """Synchronous sampling with the profile's bounds. Raises InfraError, which ends the run."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(poll_interval=POLL_SECONDS, **kwargs)
        self.skiff: Config = load_run_config(Path(os.environ["SKIFF_RUN"]) / "config.toml")
        self.deadline = math.inf

    def sample(self, global_steps: int, partition_id: str, batch_size: int) -> tuple[Any, Any]:
        """A batch of `batch_size` prompt groups, or InfraError when too little of it survived."""
        rollout = self.skiff.rollout
        each = (
            rollout.validation_trajectories
            if partition_id == "val"
            else rollout.trajectories_per_prompt
        )
        expected = batch_size * each
        self.deadline = time.monotonic() + time_limit(self.skiff, expected)
        try:
            batch, metrics = super().sample(global_steps, partition_id, batch_size)
        except RuntimeError as error:
            if NOTHING_LEFT not in str(error):
                raise
            sentence = loss_sentence(self.skiff, expected, expected)
            raise InfraError(sentence, where=f"step {global_steps}", remedy=REMEDY) from error
        masked = expected - len(batch.keys)
        metrics[f"{self._metrics_prefix(partition_id)}/masked_trajectories"] = masked
        sentence = loss_sentence(self.skiff, expected, masked)
        if sentence:
            raise InfraError(sentence, where=f"step {global_steps}", remedy=REMEDY)
        return batch, metrics

    def _wait_for_next_poll(self, partition_id: str, last_debug_time: float) -> float:
        if time.monotonic() > self.deadline:
            waiting = len(self.pending_keys[partition_id]) + len(self.running_keys[partition_id])
            raise InfraError(
                f"{waiting} prompts have no result although every trajectory's deadline "
                f"(agent.trajectory_seconds = {self.skiff.agent.trajectory_seconds:g}) has passed: "
                "an agent worker is dead or stuck",
                remedy="the training log names it; the run can be resumed",
            )
        return float(super()._wait_for_next_poll(partition_id, last_debug_time))


def time_limit(config: Config, trajectories: int) -> float:
    """Seconds after which `trajectories`, run in waves of the free slots, must all have ended."""
    slots = config.rollout.agent_workers * config.rollout.max_concurrent
    return math.ceil(trajectories / slots) * config.agent.trajectory_seconds + GRACE_SECONDS


def loss_sentence(config: Config, expected: int, masked: int) -> str:
    """Why losing `masked` of `expected` trajectories ends the run; "" when it does not."""
    if masked and config.train.on_infra_failure == "stop":
        return (
            f"{masked} of {expected} trajectories failed for infrastructure reasons and"
            " train.on_infra_failure = 'stop'"
        )
    if masked == expected:
        return f"all {expected} trajectories failed for infrastructure reasons"
    if masked > config.train.max_masked_share * expected:
        return (
            f"{masked} of {expected} trajectories failed for infrastructure reasons, more than"
            f" train.max_masked_share ({config.train.max_masked_share:g}) allows"
        )
    return ""
