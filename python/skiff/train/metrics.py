"""verl's metrics file -> `step` and `validation` events, while the run goes on.

verl's `file` logger writes one JSON line a step. Validation is counted from our own trajectory
events, because only those know which trajectories were masked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from skiff import events

TIMING = "timing_s/"
# verl's name -> ours, which the report shows.
METRICS = {
    "critic/rewards/mean": "reward_mean",
    "response_length/mean": "response_length_mean",
    "prompt_length/mean": "prompt_length_mean",
    "actor/entropy": "entropy",
    "actor/grad_norm": "grad_norm",
    "actor/pg_loss": "pg_loss",
    "actor/ppo_kl": "kl",
    "actor/kl_loss": "kl_loss",
    "actor/lr": "learning_rate",
    "critic/vf_loss": "critic_loss",
    "training/rollout_probs_diff_mean": "rollout_probs_diff_mean",
    "training/masked_trajectories": "masked",
    "num_turns/mean": "turns_mean",
}


class Follower:
    """Reads what verl has appended since the last call."""

    def __init__(self, run_dir: Path, file: Path) -> None:
        self._run_dir = run_dir
        self._file = file
        self._offset = 0

    def follow(self) -> None:
        """Emit the events of all whole new lines."""
        if not self._file.exists():
            return
        with self._file.open("rb") as source:
            source.seek(self._offset)
            for line in source:
                if not line.endswith(b"\n"):
                    break
                self._offset += len(line)
                record = json.loads(line)
                self._emit(int(record["step"]), record["data"])

    def _emit(self, step: int, data: dict[str, Any]) -> None:
        if any(name.startswith("val-") for name in data):
            events.emit(self._run_dir, "validation", **validation(self._run_dir, step))
        seconds = {
            name.removeprefix(TIMING): round(float(value), 3)
            for name, value in data.items()
            if name.startswith(TIMING)
        }
        if "step" in seconds:  # the first validation's line has none
            metrics = {ours: data[theirs] for theirs, ours in METRICS.items() if theirs in data}
            events.emit(self._run_dir, "step", step=step, seconds=seconds, metrics=metrics)


def validation(run_dir: Path, step: int) -> dict[str, Any]:
    """Counts of the last validation at `step`: a resumed run may have repeated it."""
    rewards: dict[str, list[float | None]] = {}
    for event in events.read(run_dir, "trajectory"):
        if event["split"] == "validation" and event["step"] == step:
            rewards.setdefault(event["task"], []).append(event["reward"])
    graded = [reward for each in rewards.values() for reward in each if reward is not None]
    masked = sum(len(each) for each in rewards.values()) - len(graded)
    solved = sum(reward == 1.0 for reward in graded)
    rate = solved / len(graded) if graded else None
    return {
        "step": step,
        "solved": solved,
        "graded": len(graded),
        "masked": masked,
        "solve_rate": rate,
    }
