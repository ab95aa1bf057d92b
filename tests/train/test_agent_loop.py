"""From a trajectory to verl's output and to the run folder; masked ones give verl nothing."""

from __future__ import annotations

import asyncio
import collections
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from skiff import events
from skiff.agents.trajectory import StopReason, Trajectory, Turn
from skiff.config import Config
from skiff.errors import InfraError
from skiff.report import show_trajectory
from skiff.tasks.task import ScriptGrade, Task
from skiff.train import agent_loop, tiny
from skiff.train.agent_loop import EnginePolicy, SkiffAgentLoop, Worker, output_of, record

TASK = Task(
    id="test:a/b c", source="test", image="none", prompt="Go.", grade=ScriptGrade(script="true")
)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.make_tokenizer()


@pytest.fixture
def shared(runtime_config: Callable[..., Config], tmp_path: Path) -> Worker:
    return Worker(
        run_dir=tmp_path,
        config=runtime_config(logging={"trajectories_per_step": 2}),
        tasks={TASK.id: TASK},
        client=None,  # type: ignore[arg-type]
        slots=asyncio.Semaphore(4),
        kept=collections.Counter(),
    )


def trajectory(**changes: Any) -> Trajectory:
    fields: dict[str, Any] = {
        "task_id": TASK.id,
        "prompt_ids": [72, 105],
        "response_ids": [65, 66, 67],
        "response_mask": [1, 0, 1],
        "log_probs": [-0.5, 0.0, -0.25],
        "turns": [Turn(text="ls", action="ls", observation="a.txt", exit_code=0)],
        "patch": b"\xff diff",
        "reward": 1.0,
        "seconds": {"generate": 1.25, "tools": 0.5, "grade": 0.12345},
        "preempted": 3,
    }
    return Trajectory(**{**fields, **changes})


def masked() -> Trajectory:
    return trajectory(stop=StopReason.INFRA, stop_detail="sandbox gone", reward=None)


def test_the_output_is_token_exact() -> None:
    output = output_of(trajectory(), [4, 5])
    assert output.prompt_ids == [72, 105]
    assert output.response_ids == [65, 66, 67]
    assert output.response_mask == [1, 0, 1]
    assert output.response_logprobs == [-0.5, 0.0, -0.25]
    assert output.reward_score == 1.0
    assert output.metrics.generate_sequences == 1.25
    assert output.metrics.tool_calls == 0.5
    assert output.metrics.num_preempted == 3


@pytest.mark.parametrize(("reward", "solved"), [(1.0, 1.0), (0.5, 0.0), (0.0, 0.0)])
def test_validation_finds_its_reward_info(reward: float, solved: float) -> None:
    output = output_of(trajectory(reward=reward), [1])
    assert output.extra_fields["reward_extra_info"] == {"solved": solved}


def test_the_event_counts_tokens_and_keeps_a_file(shared: Worker, tokenizer: Any) -> None:
    record(shared, trajectory(), TASK, 7, "train", tokenizer)
    (event,) = events.read(shared.run_dir, "trajectory")
    expected = {
        "step": 7,
        "split": "train",
        "task": TASK.id,
        "source": "test",
        "stop": "finished",
        "detail": "",
        "reward": 1.0,
        "turns": 1,
        "prompt_tokens": 2,
        "response_tokens": 3,
        "generated_tokens": 2,
        "seconds": {"generate": 1.25, "tools": 0.5, "grade": 0.123},
        "file": "trajectories/step_000007/train-test-a-b-c-0.json",
    }
    assert {name: event[name] for name in expected} == expected
    stored = json.loads((shared.run_dir / event["file"]).read_text())
    assert stored["prompt_text"] == tokenizer.decode([72, 105])
    assert stored["patch"] == "� diff"
    assert (stored["step"], stored["split"]) == (7, "train")
    assert "log_probs" not in stored
    assert show_trajectory(shared.run_dir)


def test_only_the_first_of_each_step_and_split_are_kept(shared: Worker, tokenizer: Any) -> None:
    for step, split in [(1, "train")] * 3 + [(1, "validation"), (2, "train")]:
        record(shared, trajectory(), TASK, step, split, tokenizer)
    files = [event["file"] for event in events.read(shared.run_dir)]
    assert [file is None for file in files] == [False, False, True, False, False]
    assert len(set(files)) == 5


def test_a_masked_trajectory_says_why(shared: Worker, tokenizer: Any) -> None:
    record(shared, masked(), TASK, 1, "train", tokenizer)
    (event,) = events.read(shared.run_dir)
    assert (event["reward"], event["stop"], event["detail"]) == (None, "infra", "sandbox gone")


def test_a_full_disk_is_our_failure(
    shared: Worker, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skiff.files.os.fsync", full)
    with pytest.raises(InfraError, match="cannot be written: No space left on device"):
        record(shared, trajectory(), TASK, 1, "train", tokenizer)
    monkeypatch.setattr("skiff.events.os.write", full)
    shared.kept[1, "train"] = 9  # no file, just the event
    with pytest.raises(InfraError, match="No space left"):
        record(shared, trajectory(), TASK, 1, "train", tokenizer)


@pytest.mark.parametrize(
    ("result", "outputs", "stop"),
    [
        (trajectory(), 1, "finished"),
        (trajectory(reward=0.0), 1, "finished"),
        (masked(), 0, "infra"),
        # The engine gave no token in time: nothing to train on, and not the agent's failure.
        (
            trajectory(response_ids=[], response_mask=[], log_probs=[], reward=0.0),
            0,
            "infra",
        ),
    ],
    ids=["solved", "failed", "masked", "empty"],
)
async def test_what_verl_gets(
    shared: Worker,
    tokenizer: Any,
    monkeypatch: pytest.MonkeyPatch,
    result: Trajectory,
    outputs: int,
    stop: str,
) -> None:
    called: dict[str, Any] = {}

    async def run_trajectory(task: Task, **arguments: Any) -> Trajectory:
        called.update(arguments, task=task)
        arguments["policy"].versions.append(3)
        return result

    monkeypatch.setattr(agent_loop, "run_trajectory", run_trajectory)
    monkeypatch.setattr(agent_loop, "worker", lambda: shared)
    loop = object.__new__(SkiffAgentLoop)  # verl's constructor wants a running cluster
    loop.model_type, loop.tokenizer, loop.server_manager = "qwen3", tokenizer, None
    sampling = {"temperature": 0.5, "top_p": 0.9, "logprobs": True}
    found = await loop.run(
        sampling,
        extra_info={"task": TASK.id, "split": "train", "index": 0},
        global_steps=4,
        uid="u",
        session_id=1,
    )
    assert len(found) == outputs
    assert called["task"] is TASK
    assert called["sampling"] == sampling
    assert called["request_id"] == "u-1"
    (event,) = events.read(shared.run_dir)
    assert (event["step"], event["stop"]) == (4, stop)
    assert (event["reward"] is None) == (outputs == 0)


class Engine:
    """verl's server client: one answer, or an exception."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.request: dict[str, Any] = {}

    async def generate(self, **request: Any) -> Any:
        self.request = request
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def answer(ids: list[int], **changes: Any) -> SimpleNamespace:
    fields: dict[str, Any] = {
        "token_ids": ids,
        "log_probs": [-1.0] * len(ids),
        "stop_reason": "completed",
        "num_preempted": None,
        "extra_fields": {"global_steps": 6},
    }
    return SimpleNamespace(**{**fields, **changes})


async def test_sampling_reaches_the_engine_unchanged() -> None:
    engine = Engine(answer([1, 2]))
    policy = EnginePolicy(engine)
    sampling = {"temperature": 0.3, "top_k": 7, "logprobs": True, "max_tokens": 9}
    generation = await policy.generate("r", [5, 6], sampling)
    assert engine.request == {
        "request_id": "r",
        "prompt_ids": [5, 6],
        "sampling_params": sampling,
    }
    assert (generation.token_ids, generation.log_probs) == ([1, 2], [-1.0, -1.0])
    assert generation.stop == "stop"
    assert policy.versions == [6]


async def test_a_cut_answer_is_told() -> None:
    generation = await EnginePolicy(Engine(answer([1, 2]))).generate("r", [5], {"max_tokens": 2})
    assert generation.stop == "length"


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        (ValueError("actor died"), "the engine failed: ValueError: actor died"),
        (answer([1, 2], log_probs=[-1.0]), "1 log-probs for 2 tokens"),
        (answer([1, 2], log_probs=None), "0 log-probs for 2 tokens"),
        (answer([], stop_reason="aborted"), "aborted"),
    ],
)
async def test_an_engine_failure_is_ours(reply: Any, words: str) -> None:
    with pytest.raises(InfraError, match=words):
        await EnginePolicy(Engine(reply)).generate("r", [5], {"max_tokens": 4})
