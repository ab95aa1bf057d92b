"""The OpenHands agent, driven by a script through the SDK's own loop."""

from __future__ import annotations

import asyncio
import copy
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pydantic
import pytest
from openhands.sdk import Agent, LocalConversation, LocalWorkspace, TextContent
from openhands.sdk import Message as SdkMessage
from skiff.agents import openhands
from skiff.agents.openhands.agent import agent_settings
from skiff.agents.openhands.llm import make_llm
from skiff.agents.openhands.session import news, open_session
from skiff.agents.scripted import render_answers
from skiff.agents.tokens import ContextFullError
from skiff.agents.trajectory import StopReason
from skiff.errors import InfraError, TaskError

Stage = Callable[..., Any]
Result = Callable[..., Any]
MALFORMED = "<function=terminal>\n<parameter=cmd>ls</parameter>\n</function>"


def play(*commands: str) -> list[str]:
    return render_answers(commands, "openhands")


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("openhands")]


async def test_finish_finishes(stage: Stage, result: Result) -> None:
    scene = stage(play("ls", "false"), [result("a.txt\n"), result("", 1)])
    stop = await openhands.run(scene.episode)
    assert stop.reason is StopReason.FINISHED
    assert scene.sandbox.commands == ["ls", "false"]
    turns = scene.episode.trajectory.turns
    assert [turn.action for turn in turns] == ["ls", "false", "finish"]
    assert [turn.exit_code for turn in turns] == [0, 1, None]
    assert [turn.observation for turn in turns] == ["a.txt\n[exit code 0]", "[exit code 1]", ""]


async def test_the_ids_are_the_transcript(stage: Stage, result: Result) -> None:
    answers = ["I look.\n" + play("ls")[0], MALFORMED, play()[0]]
    scene = stage(answers, [result("a.txt\n")])
    await openhands.run(scene.episode)
    assert scene.generated_texts() == [f"{answer}<|im_end|>" for answer in answers]
    head, _, rest = scene.transcript.partition("<|im_start|>assistant\n")
    assert "You repair software in /folder." in head
    assert head.endswith("<|im_start|>user\nRepair the folder.<|im_end|>\n")
    assert rest.startswith(
        f"{answers[0]}<|im_end|>\n"
        "<|im_start|>user\nEXECUTION RESULT of [terminal]:\na.txt\n[exit code 0]<|im_end|>\n"
        f"<|im_start|>assistant\n{MALFORMED}<|im_end|>\n"
        "<|im_start|>user\nParameter 'cmd' is not allowed"
    )


async def test_each_prompt_extends_the_one_before(stage: Stage) -> None:
    """Also where the SDK leaves malformed answers out of its history and joins its corrections."""
    answers = [*play("ls")[:1], MALFORMED, MALFORMED, "  \n", *play("pwd")]
    scene = stage(answers)
    await openhands.run(scene.episode)
    prompts = scene.policy.prompts
    assert len(prompts) == len(answers)
    for before, after in pairwise(prompts):
        assert after[: len(before)] == before
    assert scene.generated_texts() == [f"{answer}<|im_end|>" for answer in answers]


async def test_each_observation_is_in_the_tokens_once(stage: Stage, result: Result) -> None:
    scene = stage([MALFORMED, *play("ls", "pwd")], [result("amber"), result("birch")])
    await openhands.run(scene.episode)
    for text in ("Repair the folder.", "'cmd' is not allowed", "amber", "birch"):
        assert scene.transcript.count(text) == 1


@pytest.mark.parametrize("model", ["hosted_vllm/x", "openai/x"])
async def test_sampling_reaches_the_policy_whatever_the_sdk_drops(stage: Stage, model: str) -> None:
    sampling = {"temperature": 0.3, "top_p": 0.9, "top_k": 7}
    scene = stage(play(), sampling=sampling)
    question = SdkMessage(role="user", content=[TextContent(text="hello")])
    with open_session(scene.episode) as (key, _):
        llm = make_llm(key, model=model)
        await asyncio.to_thread(llm.completion, [question])
        await llm.acompletion([question, question])
    assert len(scene.policy.samplings) == 2
    for sent in scene.policy.samplings:
        assert {name: sent[name] for name in sampling} == sampling


async def test_turns_run_out(stage: Stage) -> None:
    scene = stage(play("ls", "pwd", "id"), agent={"max_turns": 2})
    stop = await openhands.run(scene.episode)
    assert stop.reason is StopReason.ITERATIONS
    assert scene.sandbox.commands == ["ls", "pwd"]
    assert scene.episode.trajectory.turns[-1].observation


async def test_finishing_with_the_last_turn_is_finishing(stage: Stage) -> None:
    scene = stage(play("ls"), agent={"max_turns": 2})
    assert (await openhands.run(scene.episode)).reason is StopReason.FINISHED


async def test_the_same_step_again_and_again_is_stuck(stage: Stage) -> None:
    scene = stage(play("ls")[:1])
    assert (await openhands.run(scene.episode)).reason is StopReason.STUCK
    assert len(scene.sandbox.commands) == 4


async def test_a_full_context_ends_with_a_generated_token(stage: Stage) -> None:
    scene = stage(play(*map(str, range(99))), rollout={"response_tokens": 600})
    with pytest.raises(ContextFullError):
        await openhands.run(scene.episode)
    assert scene.episode.buffer.response_mask[-1] == 1
    assert len(scene.episode.buffer.response_ids) <= 600
    assert len(scene.sandbox.commands) > 2


async def test_a_first_prompt_that_is_too_long_names_the_task(stage: Stage) -> None:
    scene = stage(play(), rollout={"prompt_tokens": 100})
    with pytest.raises(TaskError, match="test:one: the first prompt"):
        await openhands.run(scene.episode)


async def test_a_dead_sandbox_is_not_shown_to_the_model(stage: Stage, result: Result) -> None:
    scene = stage(play("ls", "pwd"), [result(), InfraError("the sandbox is gone")])
    with pytest.raises(InfraError, match="the sandbox is gone"):
        await openhands.run(scene.episode)
    assert len(scene.policy.prompts) == 2
    assert "gone" not in scene.transcript


async def test_any_failure_of_the_engine_is_infrastructure(stage: Stage) -> None:
    scene = stage(play("ls"))

    async def fail(*_: Any) -> Any:
        raise RuntimeError("CUDA error")

    scene.policy.script.generate = fail
    with pytest.raises(InfraError, match="the engine failed: RuntimeError: CUDA error"):
        await openhands.run(scene.episode)


@pytest.mark.parametrize("hangs", ["policy", "sandbox"])
async def test_a_deadline_ends_the_thread_and_the_call_in_flight(stage: Stage, hangs: str) -> None:
    scene = stage(play("ls"))
    entered, left = asyncio.Event(), asyncio.Event()

    async def hang(*_: Any, **__: Any) -> Any:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.1)  # a clean-up that takes its time
            left.set()

    if hangs == "policy":
        scene.policy.script.generate = hang
    else:
        scene.sandbox.run = hang
    running = asyncio.create_task(openhands.run(scene.episode))
    await entered.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert left.is_set()
    assert threads() == []


async def test_conversations_run_side_by_side(stage: Stage) -> None:
    scenes = [stage(play(f"echo {i}", "pwd")) for i in range(8)]
    for i, scene in enumerate(scenes):
        scene.episode.request_id = f"r{i}"
    stops = await asyncio.gather(*(openhands.run(scene.episode) for scene in scenes))
    assert {stop.reason for stop in stops} == {StopReason.FINISHED}
    for i, scene in enumerate(scenes):
        assert scene.sandbox.commands == [f"echo {i}", "pwd"]
    assert threads() == []


# What agents of this SDK broke on in earlier projects.


async def test_prompt_dir_of_a_subclass_from_elsewhere(stage: Stage, tmp_path: Path) -> None:
    """A subclass looks for prompt files beside its own module; ours must not need any."""

    class Elsewhere(Agent):
        pass

    scene = stage(play())
    with open_session(scene.episode) as (key, _):
        settings = agent_settings(key, scene.episode.task)
        message = Elsewhere(**settings).static_system_message
        stock = {name: settings[name] for name in ("llm", "tools")}
        with pytest.raises(FileNotFoundError, match=r"system_prompt\.j2"):
            _ = Elsewhere(**stock).static_system_message
    assert message.startswith("You repair software in /folder.")


async def test_agent_state_is_frozen_and_need_not_be_set(stage: Stage) -> None:
    scene = stage(play())
    with open_session(scene.episode) as (key, session):
        agent = Agent(**agent_settings(key, scene.episode.task))
        with pytest.raises(pydantic.ValidationError, match="frozen"):
            agent.llm = None
        session.failure = InfraError("kept in the session")  # what is mutable lives here
        assert agent.llm.session == key


async def test_what_an_agent_is_made_of_can_be_copied(stage: Stage, tmp_path: Path) -> None:
    """The SDK's agent holds a lock; each trajectory therefore builds its own from plain data."""
    scene = stage(play("ls"))
    with open_session(scene.episode) as (key, _):
        agent = Agent(**copy.deepcopy(agent_settings(key, scene.episode.task)))
        with pytest.raises(TypeError, match="RLock"):
            copy.deepcopy(agent)
        workspace = LocalWorkspace(working_dir=tmp_path)
        conversation = LocalConversation(agent, workspace, visualizer=None)
        conversation.send_message("Repair the folder.")
        llm = copy.deepcopy(conversation.agent.llm)
        conversation.close()
        question = SdkMessage(role="user", content=[TextContent(text="hello")])
        await asyncio.to_thread(llm.completion, [question])
    assert len(scene.policy.prompts) == 1


def test_the_sdk_is_imported_only_for_its_agent() -> None:
    code = "import sys, skiff.agents.run; sys.exit('openhands.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


USER = {"role": "user", "content": "do"}
OURS = {"role": "assistant", "content": "call"}
SEEN = {"role": "user", "content": "seen"}


def test_news_is_what_was_added_without_our_own_words() -> None:
    assert news([], [USER]) == [USER]
    assert news([USER], [USER, OURS, SEEN]) == [SEEN]


def test_news_of_a_message_that_has_grown_is_its_end() -> None:
    grown = {"role": "user", "content": "do\nerror"}
    error = {"role": "user", "content": "error"}
    assert news([USER], [grown]) == [error]
    assert news([USER], [grown, OURS, SEEN]) == [error, SEEN]


@pytest.mark.parametrize("after", [[SEEN], [], [SEEN, OURS, USER]])
def test_a_rewritten_history_is_refused(after: list[dict[str, str]]) -> None:
    with pytest.raises(InfraError, match="rewrote message 0"):
        news([USER, OURS], after)


def test_a_question_without_an_observation_is_refused() -> None:
    with pytest.raises(InfraError, match="without an observation"):
        news([USER], [USER, OURS])
