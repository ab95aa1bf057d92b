"""A small run folder with figures that can be checked by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Emit = Callable[..., None]


@pytest.fixture
def emit(tmp_path: Path) -> Emit:
    """Append one event to the run folder `tmp_path`, at a time of the test's choice."""

    def append(kind: str, time: float, **fields: Any) -> None:
        with (tmp_path / "events.jsonl").open("a") as events:
            events.write(json.dumps({"time": time, "kind": kind, **fields}) + "\n")

    return append


@pytest.fixture
def run_dir(tmp_path: Path, emit: Emit) -> Path:
    """Two steps of four trajectories, one of them masked; validation 2/10 -> 8/10."""
    (tmp_path / "config.toml").write_text(
        '[run]\nname = "small"\nseed = 7\n[tasks]\ntrain = ["shell:train"]\n'
        '[agent]\nname = "mini"\n[train]\nalgorithm = "grpo"\n'
    )
    emit("phase", 1010, name="warm_start", seconds=10)
    emit("validation", 1020, step=0, solved=2, graded=10, masked=0)
    rewards = {1: (0.0, 0.0, 1.0, 0.0), 2: (1.0, 1.0, None, 0.0)}
    for step, values in rewards.items():
        for index, reward in enumerate(values):
            file = f"trajectories/step_{step:06d}/task-{index}.json"
            (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / file).write_text(json.dumps(stored(step, index, reward)))
            emit(
                "trajectory",
                1020 + step,
                step=step,
                split="train",
                task=f"shell:task-{index}",
                stop="infra" if reward is None else "finished",
                detail="sandbox 3 is gone" if reward is None else "",
                reward=reward,
                response_tokens=40,
                generated_tokens=25,
                file=file,
            )
        emit(
            "step",
            1020 + 10 * step,
            step=step,
            seconds={"step": 10.0, "gen": 5.0, "update_actor": 4.0},
            metrics={"entropy": 1.0 / step},
        )
    emit("checkpoint", 1041, step=2, path="ckpt/global_step_2")
    emit("validation", 1042, step=2, solved=8, graded=10, masked=1)
    emit("finished", 1050, exit_code=0, reason="all steps done")
    return tmp_path


def stored(step: int, index: int, reward: float | None) -> dict[str, Any]:
    """A trajectory as the trainer stores it."""
    return {
        "task_id": f"shell:task-{index}",
        "step": step,
        "split": "train",
        "prompt_text": "Repair the folder.",
        "turns": [
            {
                "text": "I look first.\n```bash\nsh check.sh\n```",
                "action": "sh check.sh",
                "observation": "FAIL: <b>run.sh</b> is not executable",
                "exit_code": 1,
                "tokens": 12,
                "seconds": 0.5,
            },
            {"text": "```bash\nsubmit\n```", "action": "submit", "tokens": 5},
        ],
        "stop": "finished",
        "stop_detail": "",
        "patch": "diff --git a/run.sh b/run.sh\nold mode 100644\nnew mode 100755\n",
        "reward": reward,
        "grade_output": "ok",
        "a_field_of_a_later_version": [1],
    }
