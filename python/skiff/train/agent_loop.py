"""verl's `AgentLoopBase` for our agents: one trajectory in, one `AgentLoopOutput` (or none) out.

Registered through `rollout.agent.agent_loop_config_path`. A trajectory whose infrastructure failed
returns no output: verl then trains and scores on its siblings only, which is what masking means.
It is counted in events.jsonl, and sampler.py stops the run when too many are lost.
"""

from __future__ import annotations

import asyncio
import collections
import functools
import json
import os
import re
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from verl.experimental.agent_loop.agent_loop import AgentLoopBase, AgentLoopMetrics, AgentLoopOutput

from skiff import events
from skiff.agents.run import run_trajectory
from skiff.agents.trajectory import Generation, StopReason, Trajectory
from skiff.config import Config, load_run_config
from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.sandbox.client import RuntimeClient
from skiff.tasks.task import Task
from skiff.train.data import TASKS, read_tasks


@dataclass
class Worker:
    """What all trajectories of one agent-loop process share."""

    run_dir: Path
    config: Config
    tasks: dict[str, Task]
    client: RuntimeClient
    slots: asyncio.Semaphore
    kept: collections.Counter[tuple[int, str]]


@functools.lru_cache(maxsize=1)
def worker() -> Worker:
    """Made at the first trajectory from SKIFF_RUN and the runtime's variables."""
    run_dir = Path(os.environ["SKIFF_RUN"])
    config = load_run_config(run_dir / "config.toml")
    return Worker(
        run_dir=run_dir,
        config=config,
        tasks=read_tasks(run_dir / "data" / TASKS),
        client=RuntimeClient.from_env(start_seconds=config.runtime.start_seconds),
        slots=asyncio.Semaphore(config.rollout.max_concurrent),
        kept=collections.Counter(),
    )


class EnginePolicy:
    """The `Policy` protocol over verl's server client (token ids in, token ids out).

    `versions` collects the training steps whose weights have answered; verl asks for their range.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.versions: list[int] = []

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]
    ) -> Generation:
        try:
            output = await self._client.generate(
                request_id=request_id, prompt_ids=prompt_ids, sampling_params=dict(sampling)
            )
        except Exception as error:  # a Ray or vLLM failure of any type is ours, not the agent's
            raise InfraError(f"the engine failed: {type(error).__name__}: {error}") from error
        if output.stop_reason == "aborted":
            raise InfraError("the engine aborted the request")
        ids = list(output.token_ids)
        log_probs = list(output.log_probs or [])
        if len(log_probs) != len(ids):
            raise InfraError(
                f"the engine returned {len(log_probs)} log-probs for {len(ids)} tokens"
            )
        limit = sampling.get("max_tokens", 0)
        stop = "length" if limit and len(ids) >= limit and output.stop_reason != "stop" else "stop"
        self.versions.append(int(output.extra_fields["global_steps"]))
        return Generation(ids, log_probs, stop, output.num_preempted or 0)


class SkiffAgentLoop(AgentLoopBase):
    """verl makes one per trajectory; it holds no state of its own."""

    def __init__(self, *args: Any, hf_model_type: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, hf_model_type=hf_model_type, **kwargs)
        self.model_type = hf_model_type or ""

    async def run(self, sampling_params: dict[str, Any], **row: Any) -> list[AgentLoopOutput]:
        """One trajectory of the task named in the row's `extra_info`; [] when it is masked."""
        shared = worker()
        info = row["extra_info"]
        step, split = int(row["global_steps"]), str(info["split"])
        task = shared.tasks[info["task"]]
        policy = EnginePolicy(self.server_manager)
        async with shared.slots:
            start = time.monotonic()
            trajectory = await run_trajectory(
                task,
                config=shared.config,
                policy=policy,
                tokenizer=self.tokenizer,
                model_type=self.model_type,
                client=shared.client,
                sampling=sampling_params,
                request_id=f"{row['uid']}-{row['session_id']}",
            )
            trajectory.seconds["total"] = time.monotonic() - start
        if not trajectory.response_ids:
            mask_empty(trajectory)
        record(shared, trajectory, task, step, split, self.tokenizer)
        if trajectory.reward is None:
            return []
        return [output_of(trajectory, policy.versions)]


def mask_empty(trajectory: Trajectory) -> None:
    """An engine that gave no token in time is our failure; verl has nothing to train on, either."""
    if trajectory.reward is not None:
        trajectory.stop_detail = f"no token was generated (stop: {trajectory.stop.value})"
        trajectory.stop, trajectory.reward = StopReason.INFRA, None


def output_of(trajectory: Trajectory, versions: list[int]) -> AgentLoopOutput:
    """Trajectory -> verl's output. verl requires all three extra fields.

    `versions` are the training steps whose weights have generated it, at least one.
    """
    seconds = trajectory.seconds
    return AgentLoopOutput(
        prompt_ids=trajectory.prompt_ids,
        response_ids=trajectory.response_ids,
        response_mask=trajectory.response_mask,
        response_logprobs=trajectory.log_probs,
        reward_score=trajectory.reward,
        num_turns=2 * len(trajectory.turns),
        metrics=AgentLoopMetrics(
            generate_sequences=seconds.get("generate", 0.0),
            tool_calls=seconds.get("tools", 0.0),
            compute_score=seconds.get("grade", 0.0),
            num_preempted=trajectory.preempted,
        ),
        extra_fields={
            "reward_extra_info": {"solved": float(trajectory.reward == 1.0)},
            "min_global_steps": min(versions),
            "max_global_steps": max(versions),
        },
    )


def record(
    shared: Worker, trajectory: Trajectory, task: Task, step: int, split: str, tokenizer: Any
) -> None:
    """Append the `trajectory` event and keep the first few trajectories of each step as files.

    Raises InfraError when the run folder takes no more (a full disk): verl then goes on without
    this trajectory and logs the error, and sampler.py counts it as lost.
    """
    try:
        _record(shared, trajectory, task, step, split, tokenizer)
    except OSError as error:
        raise InfraError(
            f"cannot be written: {error.strerror}", where=str(shared.run_dir), remedy="free space"
        ) from error


def _record(
    shared: Worker, trajectory: Trajectory, task: Task, step: int, split: str, tokenizer: Any
) -> None:
    file: str | None = None
    masked = trajectory.stop is StopReason.INFRA
    number = shared.kept[step, split]
    if number < shared.config.logging.trajectories_per_step:
        shared.kept[step, split] += 1
        slug = re.sub(r"[^A-Za-z0-9._-]+", "-", task.id).strip("-")
        folder = shared.run_dir / "trajectories" / f"step_{step:06d}"
        folder.mkdir(parents=True, exist_ok=True)
        file = f"trajectories/step_{step:06d}/{split}-{slug}-{number}.json"
        write_atomic(
            shared.run_dir / file, json.dumps(_readable(trajectory, step, split, tokenizer))
        )
    events.emit(
        shared.run_dir,
        "trajectory",
        step=step,
        split=split,
        task=task.id,
        source=task.source,
        stop=trajectory.stop.value,
        detail=trajectory.stop_detail[:500] if masked else "",
        reward=trajectory.reward,
        turns=len(trajectory.turns),
        prompt_tokens=len(trajectory.prompt_ids),
        response_tokens=len(trajectory.response_ids),
        generated_tokens=sum(trajectory.response_mask),
        seconds={name: round(value, 3) for name, value in trajectory.seconds.items()},
        file=file,
    )


def _readable(trajectory: Trajectory, step: int, split: str, tokenizer: Any) -> dict[str, Any]:
    data = asdict(trajectory)
    for name in ("prompt_ids", "response_ids", "response_mask", "log_probs"):
        del data[name]
    data["patch"] = trajectory.patch.decode("utf-8", "replace")
    data["prompt_text"] = tokenizer.decode(trajectory.prompt_ids)
    data["response_text"] = tokenizer.decode(trajectory.response_ids)
    return data | {"step": step, "split": split}
