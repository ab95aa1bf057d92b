"""From task to reward: deadline, failures and what is left behind, without a runtime server.

The same calls with a real sandbox are in test_real.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from skiff.agents import run as module
from skiff.agents.run import run_trajectory
from skiff.agents.scripted import ScriptedPolicy, solution_answers
from skiff.agents.trajectory import StopReason, Trajectory
from skiff.config import Config
from skiff.errors import InfraError, TaskError
from skiff.tasks.lifecycle import GradeResult
from skiff.tasks.task import Task


@dataclass
class Steps:
    """Stands for client and task life cycle; an exception or delay can be put at each step."""

    sandbox: Any
    at: dict[str, Any] = field(default_factory=dict)
    log: list[str] = field(default_factory=list)
    timeouts: dict[str, float] = field(default_factory=dict)
    hanging: asyncio.Event = field(default_factory=asyncio.Event)

    async def step(self, name: str, timeout: float = 0.0) -> None:
        self.log.append(name)
        self.timeouts[name] = timeout
        fault = self.at.get(name)
        if isinstance(fault, Exception):
            raise fault
        if fault == "hang":
            self.hanging.set()
            await asyncio.Event().wait()

    @asynccontextmanager
    async def open(self, spec: Any) -> AsyncIterator[Any]:
        await self.step("start")
        try:
            yield self.sandbox
        finally:
            self.log.append("stop")

    async def prepare(self, sandbox: Any, task: Task, *, timeout: float) -> None:
        await self.step("prepare", timeout)

    async def extract_patch(self, sandbox: Any, task: Task, *, timeout: float) -> bytes:
        await self.step("extract", timeout)
        return b"patch"

    async def grade(
        self, client: Any, spec: Any, task: Task, patch: bytes, *, timeout: float
    ) -> Any:
        await self.step("grade", timeout)
        return GradeResult(reward=1.0, output="1 passed", detail="")


class Client:
    def __init__(self, steps: Steps) -> None:
        self.sandbox = steps.open


@dataclass
class Scene:
    steps: Steps
    policy: Any
    run: Callable[..., Any]


@pytest.fixture
def scene(
    monkeypatch: pytest.MonkeyPatch,
    stage: Callable[..., Any],
    make_config: Callable[..., Config],
    tokenizer: Any,
    task: Task,
) -> Scene:
    steps = Steps(stage([""]).sandbox)
    for name in ("prepare", "extract_patch", "grade"):
        monkeypatch.setattr(module, name, getattr(steps, name))
    policy = ScriptedPolicy(tokenizer, solution_answers(task, "mini"))

    async def run(task: Task = task, **sections: Any) -> Trajectory:
        return await run_trajectory(
            task,
            config=make_config(**sections),
            policy=policy,
            tokenizer=tokenizer,
            model_type="qwen3",
            client=Client(steps),  # type: ignore[arg-type]
            sampling={"temperature": 1.0},
            request_id="r1",
        )

    return Scene(steps, policy, run)


async def test_a_trajectory_is_graded_after_its_sandbox_has_stopped(scene: Scene) -> None:
    trajectory = await scene.run()
    assert scene.steps.log == ["start", "prepare", "extract", "stop", "grade"]
    assert trajectory.stop is StopReason.FINISHED
    assert (trajectory.reward, trajectory.patch) == (1.0, b"patch")
    assert trajectory.grade_output == "1 passed"
    assert set(trajectory.seconds) == {"start", "generate", "tools", "grade"}
    lengths = {
        len(trajectory.response_ids),
        len(trajectory.response_mask),
        len(trajectory.log_probs),
    }
    assert len(lengths) == 1
    assert trajectory.prompt_ids
    assert trajectory.response_ids


async def test_a_full_context_is_graded(scene: Scene) -> None:
    trajectory = await scene.run(rollout={"response_tokens": 60}, agent={"turn_tokens": 60})
    assert trajectory.stop is StopReason.CONTEXT
    assert trajectory.reward == 1.0
    assert trajectory.response_mask[-1] == 1


@pytest.mark.parametrize("step", ["start", "prepare", "extract", "grade"])
@pytest.mark.parametrize(
    "fault", [InfraError("gone", remedy="look"), TaskError("no such image"), OSError("broken pipe")]
)
async def test_a_failure_of_ours_is_masked(scene: Scene, step: str, fault: Exception) -> None:
    scene.steps.at[step] = fault
    trajectory = await scene.run()
    assert trajectory.stop is StopReason.INFRA
    assert trajectory.reward is None
    assert str(fault) in trajectory.stop_detail
    assert ("stop" in scene.steps.log) == (step != "start")


async def test_what_was_generated_before_a_failure_is_kept(scene: Scene) -> None:
    scene.steps.sandbox.answers = [InfraError("the sandbox is gone")]
    trajectory = await scene.run()
    assert trajectory.stop is StopReason.INFRA
    assert trajectory.reward is None
    assert sum(trajectory.response_mask) > 0
    assert trajectory.turns


async def test_a_first_prompt_that_is_too_long_is_masked_and_names_the_task(scene: Scene) -> None:
    trajectory = await scene.run(rollout={"prompt_tokens": 5})
    assert trajectory.stop is StopReason.INFRA
    assert "test:one" in trajectory.stop_detail


async def test_a_slow_agent_is_graded_for_what_it_did(scene: Scene) -> None:
    async def hang(*_: Any) -> Any:
        await asyncio.Event().wait()

    scene.policy.generate = hang
    trajectory = await scene.run(
        agent={"trajectory_seconds": 1, "command_seconds": 0.1, "grade_seconds": 0.1}
    )
    assert trajectory.stop is StopReason.BUDGET
    assert scene.steps.log == ["start", "prepare", "extract", "stop", "grade"]
    assert trajectory.reward == 1.0


@pytest.mark.parametrize("step", ["start", "prepare", "extract", "grade"])
async def test_our_own_slowness_is_masked(scene: Scene, step: str) -> None:
    scene.steps.at[step] = "hang"
    trajectory = await scene.run(
        agent={"trajectory_seconds": 0.3, "command_seconds": 0.1, "grade_seconds": 0.1}
    )
    assert trajectory.stop is StopReason.INFRA
    assert trajectory.reward is None
    assert "agent.trajectory_seconds" in trajectory.stop_detail


async def test_the_agent_leaves_time_for_the_grade(scene: Scene, task: Task) -> None:
    await scene.run(agent={"trajectory_seconds": 500, "grade_seconds": 100})
    assert 99 < scene.steps.timeouts["grade"] <= 100
    await scene.run(task.model_copy(update={"grade_seconds": 1000}))
    assert 0 < scene.steps.timeouts["grade"] <= 60


async def test_a_cancelled_trajectory_stops_its_sandbox(scene: Scene) -> None:
    scene.steps.at["extract"] = "hang"
    running = asyncio.create_task(scene.run())
    await scene.steps.hanging.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert scene.steps.log[-1] == "stop"


async def test_a_programming_error_is_raised(scene: Scene) -> None:
    scene.steps.at["prepare"] = KeyError("bug")
    with pytest.raises(KeyError):
        await scene.run()
