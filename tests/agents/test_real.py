"""Trajectories in real sandboxes, from task to reward, with the scripted policy."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable
from typing import Any

import pytest
from skiff.agents.run import run_trajectory
from skiff.agents.scripted import ScriptedPolicy, render_answers, solution_answers
from skiff.agents.trajectory import Generation, StopReason, Trajectory
from skiff.config import Config
from skiff.sandbox.client import RuntimeClient, Sandbox, SandboxSpec
from skiff.tasks.shell import tasks
from skiff.tasks.task import Task

Run = Callable[..., Any]
AGENTS = ["mini", "openhands"]


@pytest.fixture(scope="session")
def shell_task() -> Task:
    return tasks("validation")[0]


@pytest.fixture
def run(runtime_client: RuntimeClient, make_config: Callable[..., Config], tokenizer: Any) -> Run:
    """`run(task, agent, answers)`: one trajectory of the scripted policy."""

    async def play(
        task: Task,
        agent: str,
        answers: list[str],
        *,
        client: RuntimeClient = runtime_client,
        **limits: Any,
    ) -> Trajectory:
        return await run_trajectory(
            task,
            config=make_config(agent={"name": agent, **limits}),
            policy=ScriptedPolicy(tokenizer, answers),
            tokenizer=tokenizer,
            model_type="qwen3",
            client=client,
            sampling={"temperature": 1.0},
            request_id=f"{task.id}-{agent}",
        )

    return play


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_solution_earns_the_reward(run: Run, shell_task: Task, agent: str) -> None:
    trajectory = await run(shell_task, agent, solution_answers(shell_task, agent))
    assert trajectory.stop is StopReason.FINISHED, trajectory.stop_detail
    assert trajectory.reward == 1.0, trajectory.grade_output
    assert trajectory.patch
    assert all(trajectory.seconds[phase] > 0 for phase in ("start", "generate", "tools", "grade"))


@pytest.mark.parametrize("agent", AGENTS)
async def test_doing_nothing_earns_nothing(run: Run, shell_task: Task, agent: str) -> None:
    trajectory = await run(shell_task, agent, render_answers([], agent))
    assert trajectory.stop is StopReason.FINISHED, trajectory.stop_detail
    assert trajectory.reward == 0.0
    assert trajectory.patch == b""


@pytest.mark.parametrize("agent", AGENTS)
async def test_the_transcript_is_what_happened(
    run: Run, shell_task: Task, agent: str, tokenizer: Any
) -> None:
    trajectory = await run(
        shell_task, agent, render_answers(["echo out; echo err >&2; exit 3", "pwd"], agent)
    )
    text = tokenizer.decode(trajectory.response_ids)
    assert "out\nerr" in text
    assert "/folder" in text
    assert [turn.exit_code for turn in trajectory.turns] == [3, 0, None]
    mask, ids = trajectory.response_mask, trajectory.response_ids
    generated = tokenizer.decode([i for i, kept in zip(ids, mask, strict=True) if kept])
    assert generated == "".join(f"{turn.text}<|im_end|>" for turn in trajectory.turns)


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_command_that_hangs_costs_its_time_only(
    run: Run, shell_task: Task, agent: str
) -> None:
    answers = render_answers(["sleep 60", "echo alive"], agent)
    trajectory = await run(shell_task, agent, answers, command_seconds=1)
    assert trajectory.stop is StopReason.FINISHED, trajectory.stop_detail
    assert trajectory.turns[0].exit_code is None
    assert "alive" in trajectory.turns[1].observation


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_slow_agent_is_graded_for_what_it_did(
    run: Run, shell_task: Task, agent: str
) -> None:
    answers = render_answers([*shell_task.solution, "sleep 60"], agent)
    trajectory = await run(
        shell_task, agent, answers, trajectory_seconds=16, command_seconds=15, grade_seconds=4
    )
    assert trajectory.stop is StopReason.BUDGET, trajectory.stop_detail
    assert trajectory.reward == 1.0


async def test_the_editor_edits_in_the_sandbox(run: Run, shell_task: Task) -> None:
    def edit(**fields: str) -> str:
        parameters = "".join(f"<parameter={k}>{v}</parameter>\n" for k, v in fields.items())
        return f"<function=file_editor>\n{parameters}</function>"

    path = "/folder/sub/new.txt"
    answers = [
        edit(command="create", path=path, file_text="one\ntwo"),
        edit(command="str_replace", path=path, old_str="two", new_str="three"),
        edit(command="view", path="/folder/absent"),
        edit(command="create", path="/etc/passwd/below", file_text="x"),
        edit(command="view", path="/folder"),
        *render_answers([f"cat {path}"], "openhands"),
    ]
    trajectory = await run(shell_task, "openhands", answers)
    assert trajectory.stop is StopReason.FINISHED, trajectory.stop_detail
    seen = [turn.observation for turn in trajectory.turns]
    assert seen[5] == "one\nthree\n[exit code 0]"
    assert [turn.exit_code for turn in trajectory.turns[:5]] == [0, 0, 1, 1, 0]
    assert path in seen[4]
    assert b"three" in trajectory.patch


@pytest.mark.parametrize("agent", AGENTS)
async def test_an_image_that_does_not_exist_is_masked(
    run: Run, shell_task: Task, agent: str
) -> None:
    task = shell_task.model_copy(update={"image": "localhost/skiff/absent:1"})
    trajectory = await run(task, agent, solution_answers(task, agent))
    assert trajectory.stop is StopReason.INFRA
    assert trajectory.reward is None
    assert "localhost/skiff/absent:1" in trajectory.stop_detail


async def test_trajectories_run_side_by_side(run: Run) -> None:
    chosen = tasks("validation")[:6]
    found = await asyncio.gather(
        *(
            run(task, AGENTS[i % 2], solution_answers(task, AGENTS[i % 2]))
            for i, task in enumerate(chosen)
        )
    )
    assert [trajectory.reward for trajectory in found] == [1.0] * len(chosen)


@pytest.fixture
def before_second_answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """`before_second_answer(act)`: awaits `act()` when the policy is asked again."""
    answer = ScriptedPolicy.generate

    def arrange(act: Callable[[], Any]) -> None:
        calls: list[int] = []

        async def act_then_answer(self: ScriptedPolicy, *call: Any) -> Generation:
            calls.append(1)
            if len(calls) == 2:
                await act()
            return await answer(self, *call)

        monkeypatch.setattr(ScriptedPolicy, "generate", act_then_answer)

    return arrange


def assert_masked_after_the_first_turn(trajectory: Trajectory) -> None:
    assert trajectory.stop is StopReason.INFRA
    assert trajectory.reward is None
    assert [turn.exit_code for turn in trajectory.turns] == [0, None]
    assert sum(trajectory.response_mask) > 0


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_sandbox_that_dies_is_masked(
    run: Run,
    shell_task: Task,
    agent: str,
    runtime_client: RuntimeClient,
    before_second_answer: Callable[[Callable[[], Any]], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started: list[Sandbox] = []
    start = runtime_client.start

    async def remember(spec: SandboxSpec) -> Sandbox:
        started.append(await start(spec))
        return started[-1]

    monkeypatch.setattr(runtime_client, "start", remember)
    before_second_answer(lambda: started[0].stop())
    trajectory = await run(shell_task, agent, render_answers(["echo one", "echo two"], agent))
    assert_masked_after_the_first_turn(trajectory)
    assert started[0].session_id in trajectory.stop_detail


@pytest.mark.parametrize("agent", AGENTS)
async def test_a_server_that_is_killed_masks_its_trajectories(
    run: Run,
    shell_task: Task,
    agent: str,
    debian_image: str,
    launch_server: Callable[..., Any],
    make_config: Callable[..., Config],
    before_second_answer: Callable[[Callable[[], Any]], None],
) -> None:
    server = launch_server(make_config())
    before_second_answer(lambda: asyncio.to_thread(server.end, signal.SIGKILL))
    async with RuntimeClient([server.url], server.key) as client:
        answers = render_answers(["echo one", "echo two"], agent)
        trajectory = await run(shell_task, agent, answers, client=client)
    launch_server(make_config())  # sweeps what the killed one left
    assert_masked_after_the_first_turn(trajectory)
