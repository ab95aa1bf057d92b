"""The mini agent: format, stop reasons, and tokens, driven by a script."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
from skiff.agents import mini
from skiff.agents.prompts import MINI_CORRECTION, MINI_SYSTEM
from skiff.agents.scripted import render_answers
from skiff.agents.tokens import ContextFullError
from skiff.agents.trajectory import StopReason
from skiff.errors import InfraError

Stage = Callable[..., Any]
Result = Callable[..., Any]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("```bash\nls -l\n```", "ls -l"),
        ("I look.\n```bash\nls -l\n```\nThen more.", "ls -l"),
        ("```bash\ncat <<E\na\nE\n```", "cat <<E\na\nE"),
        ("<think>```bash\nrm -rf /\n```</think>```bash\nls\n```", "ls"),
        ("```bash\nsubmit\n```", "submit"),
        ("ls", None),
        ("```bash\nls", None),  # cut by length
        ("```bash\n\n```", None),
        ("```bash\nls\n```\n```bash\npwd\n```", None),
        ("```python\nls\n```", None),
    ],
)
def test_the_command_is_the_one_bash_block(text: str, command: str | None) -> None:
    assert mini.parse_command(text) == command


def test_what_is_rendered_is_parsed() -> None:
    assert mini.parse_command(mini.render_command("echo a\necho b")) == "echo a\necho b"


def test_the_system_prompt_is_short() -> None:
    assert len(MINI_SYSTEM.split()) <= 60


async def test_submit_finishes(stage: Stage, result: Result) -> None:
    scene = stage(render_answers(["ls", "pwd"], "mini"), [result("a.txt\n"), result("", 2)])
    stop = await mini.run(scene.episode)
    assert stop.reason is StopReason.FINISHED
    assert scene.sandbox.commands == ["ls", "pwd"]
    turns = scene.episode.trajectory.turns
    assert [turn.action for turn in turns] == ["ls", "pwd", "submit"]
    assert [turn.observation for turn in turns] == ["exit 0\na.txt", "exit 2", ""]
    assert [turn.exit_code for turn in turns] == [0, 2, None]


async def test_the_ids_are_the_transcript(stage: Stage, tokenizer: Any) -> None:
    scene = stage(render_answers(["ls"], "mini"))
    await mini.run(scene.episode)
    assert scene.transcript == (
        f"<|im_start|>system\n{MINI_SYSTEM}<|im_end|>\n"
        "<|im_start|>user\nRepair the folder.<|im_end|>\n"
        "<|im_start|>assistant\n```bash\nls\n```<|im_end|>\n"
        "<|im_start|>user\nexit 0\nhello<|im_end|>\n"
        "<|im_start|>assistant\n```bash\nsubmit\n```<|im_end|>"
    )
    assert scene.generated_texts() == [
        "```bash\nls\n```<|im_end|>",
        "```bash\nsubmit\n```<|im_end|>",
    ]


def counting(turns: int) -> list[str]:
    """Answers that never repeat, so that the agent is not stuck."""
    return render_answers([f"echo {i}" for i in range(turns)], "mini")


async def test_each_prompt_extends_the_one_before(stage: Stage) -> None:
    scene = stage(counting(5))
    await mini.run(scene.episode)
    prompts = scene.policy.prompts
    assert len(prompts) == 6
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before
    assert prompts[0] == scene.episode.buffer.prompt_ids


async def test_turns_run_out(stage: Stage) -> None:
    scene = stage(counting(9), agent={"max_turns": 3})
    stop = await mini.run(scene.episode)
    assert stop.reason is StopReason.ITERATIONS
    assert len(scene.sandbox.commands) == 3  # the last command counts, too
    assert scene.episode.buffer.response_mask[-1] == 1


async def test_a_full_context_ends_with_a_generated_token(stage: Stage) -> None:
    scene = stage(
        counting(99), agent={"max_turns": 99, "turn_tokens": 50}, rollout={"response_tokens": 200}
    )
    with pytest.raises(ContextFullError):
        await mini.run(scene.episode)
    buffer = scene.episode.buffer
    assert buffer.response_mask[-1] == 1
    assert len(buffer.response_ids) <= 200


async def test_max_tokens_is_what_is_left(stage: Stage) -> None:
    scene = stage(
        counting(99), agent={"max_turns": 99, "turn_tokens": 50}, rollout={"response_tokens": 200}
    )
    with pytest.raises(ContextFullError):
        await mini.run(scene.episode)
    start = len(scene.policy.prompts[0])
    for prompt, sampling in zip(scene.policy.prompts, scene.policy.samplings, strict=True):
        assert sampling["max_tokens"] == min(50, 200 - (len(prompt) - start))


async def test_the_same_step_again_and_again_is_stuck(stage: Stage, result: Result) -> None:
    scene = stage(["```bash\nls\n```"], [result("x")] * 2 + [result("y")])
    stop = await mini.run(scene.episode)
    assert stop.reason is StopReason.STUCK
    assert len(scene.sandbox.commands) == 2 + mini.REPEATS  # the first two saw something else


async def test_a_malformed_answer_is_corrected_and_costs_a_turn(stage: Stage) -> None:
    scene = stage(["hello", *counting(0)], agent={"max_turns": 2})
    stop = await mini.run(scene.episode)
    assert stop.reason is StopReason.FINISHED
    assert scene.sandbox.commands == []
    assert scene.episode.trajectory.turns[0].observation == MINI_CORRECTION
    assert f"user\n{MINI_CORRECTION}<|im_end|>" in scene.transcript


async def test_an_answer_cut_by_length_is_malformed(stage: Stage) -> None:
    scene = stage(["```bash\n" + "x" * 200 + "\n```", *counting(0)], agent={"turn_tokens": 40})
    await mini.run(scene.episode)
    turns = scene.episode.trajectory.turns
    assert turns[0].tokens == 40
    assert turns[0].observation == MINI_CORRECTION


async def test_long_output_is_cut_in_the_middle(stage: Stage, result: Result) -> None:
    scene = stage(counting(1), [result("A" * 500 + "B" * 500)], agent={"observation_chars": 10})
    await mini.run(scene.episode)
    assert scene.episode.trajectory.turns[0].observation == (
        "exit 0\nAAAAA\n[... 990 characters cut ...]\nBBBBB"
    )


async def test_a_timeout_is_told(stage: Stage, result: Result) -> None:
    scene = stage(counting(1), [result("partial", None)])
    await mini.run(scene.episode)
    assert scene.episode.trajectory.turns[0].observation == "timeout\npartial"


async def test_a_dead_sandbox_is_not_an_observation(stage: Stage) -> None:
    scene = stage(counting(1), [InfraError("the sandbox is gone")])
    with pytest.raises(InfraError, match="gone"):
        await mini.run(scene.episode)


async def test_any_failure_of_the_engine_is_infrastructure(stage: Stage) -> None:
    scene = stage(counting(1))

    async def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error")

    scene.policy.script.generate = fail
    with pytest.raises(InfraError, match="test:one: the engine failed: RuntimeError: CUDA error"):
        await mini.run(scene.episode)


async def test_sampling_parameters_arrive_unchanged(stage: Stage) -> None:
    sampling = {"temperature": 0.3, "top_p": 0.9, "top_k": 7, "logprobs": True}
    scene = stage(counting(2), sampling=sampling)
    await mini.run(scene.episode)
    for sent in scene.policy.samplings:
        assert {name: sent[name] for name in sampling} == sampling
        assert set(sent) == {*sampling, "max_tokens"}
