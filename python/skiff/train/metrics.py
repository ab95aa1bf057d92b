"""verl's metrics file -> `step` and `validation` events, while the run goes on.

verl's `file` logger writes one JSON line a step. Validation is counted from our own trajectory
events, because only those know which trajectories were masked.
"""

from __future__ import annotations

import itertools
import math
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
    """Reads what verl has appended since the last call. Made before verl starts."""

    def __init__(self, run_dir: Path, file: Path, *, begun: int = 0) -> None:
        self.step = begun  # the newest one with metrics
        self._run_dir = run_dir
        self._lines = events.Tail(file)
        self._earlier = sum(1 for _ in events.read(run_dir, "trajectory"))

    def follow(self) -> None:
        """Emit the events of all whole new lines."""
        for record in self._lines.new():
            self._emit(int(record["step"]), record["data"])

    def _emit(self, step: int, data: dict[str, Any]) -> None:
        if any(name.startswith("val-") for name in data):
            counts = validation(self._run_dir, step, earlier=self._earlier)
            events.emit(self._run_dir, "validation", **counts)
        numbers = {name: n for name, value in data.items() if (n := number(value)) is not None}
        seconds = {
            name.removeprefix(TIMING): round(value, 3)
            for name, value in numbers.items()
            if name.startswith(TIMING)
        }
        if "step" in seconds:  # the first validation's line has none
            metrics = {ours: numbers[name] for name, ours in METRICS.items() if name in numbers}
            events.emit(self._run_dir, "step", step=step, seconds=seconds, metrics=metrics)
            self.step = step


def number(value: Any) -> float | None:
    """A finite number as it is, a list as the mean of its finite numbers; None where none is.

    Some of verl's metrics are lists, empty at times, and a NaN arrives as null.
    """
    parts = value if isinstance(value, list) else [value]
    finite = [part for part in parts if isinstance(part, int | float) and math.isfinite(part)]
    return sum(finite) / len(finite) if finite else None


def validation(run_dir: Path, step: int, *, earlier: int = 0) -> dict[str, Any]:
    """Counts of the validation at `step`, without the first `earlier` trajectories of the run:
    an attempt may repeat a validation that the one before it began."""
    trajectories = itertools.islice(events.read(run_dir, "trajectory"), earlier, None)
    rewards = [
        event["reward"]
        for event in trajectories
        if event["split"] == "validation" and event["step"] == step
    ]
    graded = [reward for reward in rewards if reward is not None]
    solved = sum(reward == 1.0 for reward in graded)
    return {
        "step": step,
        "solved": solved,
        "graded": len(graded),
        "masked": len(rewards) - len(graded),
        "solve_rate": solved / len(graded) if graded else None,
    }
