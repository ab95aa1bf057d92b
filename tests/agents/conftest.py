"""A tokenizer, a config, a task and a sandbox whose answers are written down in the test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from skiff.agents.episode import Episode
from skiff.agents.run import PHASES
from skiff.agents.scripted import ScriptedPolicy
from skiff.agents.tokens import Limits, TokenBuffer
from skiff.agents.trajectory import Generation, Trajectory
from skiff.config import Config
from skiff.sandbox.client import CommandResult
from skiff.tasks.task import ScriptGrade, Task
from skiff.train.tiny import make_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return make_tokenizer(texts=["exit 0\nhello world, answer with one command"] * 2, size=400)


@pytest.fixture
def make_config(runtime_config: Callable[..., Config]) -> Callable[..., Config]:
    """`make_config(agent={...}, rollout={...})`: a valid config with short times."""

    def make(*, agent: Mapping[str, Any] | None = None, **sections: Any) -> Config:
        times = {"command_seconds": 20, "grade_seconds": 20, "trajectory_seconds": 60}
        times |= agent or {}
        # The longest that leaves the agent its half.
        start = {"start_seconds": times["trajectory_seconds"] / 2 - times["grade_seconds"]}
        return runtime_config(agent=times, runtime=start, **sections)

    return make


@pytest.fixture
def task() -> Task:
    return Task(
        id="test:one",
        source="test",
        image="none",
        prompt="Repair the folder.",
        workdir="/folder",
        grade=ScriptGrade(script="true"),
        solution=("echo fixed > a.txt",),
    )


@dataclass
class Sandbox:
    """Answers commands from a list, then with the last answer; an exception in it is raised."""

    answers: Sequence[CommandResult | Exception]
    commands: list[str] = field(default_factory=list)

    async def run(
        self,
        command: str,
        *,
        timeout: float,
        cwd: str | None = None,
    ) -> CommandResult:
        answer = self.answers[min(len(self.commands), len(self.answers) - 1)]
        self.commands.append(command)
        if isinstance(answer, Exception):
            raise answer
        return answer


def _result(text: str = "", exit_code: int | None = 0) -> CommandResult:
    return CommandResult(
        exit_code=exit_code,
        stdout=text.encode(),
        stderr=b"",
        timed_out=exit_code is None,
        truncated=False,
        seconds=0.01,
    )


@pytest.fixture
def result() -> Callable[..., CommandResult]:
    """`result(text, exit_code)`: what a sandbox answers; exit code None = timed out."""
    return _result


@dataclass
class RecordingPolicy:
    """A scripted policy that keeps the prompts and sampling parameters it was called with."""

    script: ScriptedPolicy
    prompts: list[list[int]] = field(default_factory=list)
    samplings: list[dict[str, Any]] = field(default_factory=list)

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]
    ) -> Generation:
        self.prompts.append(prompt_ids)
        self.samplings.append(sampling)
        return await self.script.generate(request_id, prompt_ids, sampling)


@dataclass
class Stage:
    """An episode and the fakes around it."""

    episode: Episode
    policy: RecordingPolicy
    sandbox: Sandbox
    tokenizer: Any

    @property
    def transcript(self) -> str:
        buffer = self.episode.buffer
        text: str = self.tokenizer.decode(buffer.prompt_ids + buffer.response_ids)
        return text

    def generated_texts(self) -> list[str]:
        """The runs of mask 1, decoded."""
        buffer, runs, last = self.episode.buffer, list[list[int]](), 0
        for token, mask in zip(buffer.response_ids, buffer.response_mask, strict=True):
            if mask and not last:
                runs.append([])
            if mask:
                runs[-1].append(token)
            last = mask
        return [self.tokenizer.decode(run) for run in runs]


@pytest.fixture
def stage(tokenizer: Any, make_config: Callable[..., Config], task: Task) -> Callable[..., Stage]:
    """`stage(answers, results, **config sections)`: an episode with a scripted policy."""

    def make(
        answers: Sequence[str],
        results: Sequence[CommandResult | Exception] = (_result("hello"),),
        sampling: dict[str, Any] | None = None,
        **sections: dict[str, Any],
    ) -> Stage:
        config = make_config(**sections)
        policy = RecordingPolicy(ScriptedPolicy(tokenizer, answers))
        sandbox = Sandbox(results)
        episode = Episode(
            task=task,
            agent=config.agent,
            policy=policy,
            tokenizer=tokenizer,
            sampling=sampling or {"temperature": 1.0},
            request_id="r1",
            sandbox=sandbox,  # type: ignore[arg-type]
            buffer=TokenBuffer.create(tokenizer, "qwen3", Limits.from_config(config)),
            trajectory=Trajectory(task_id=task.id, seconds=dict.fromkeys(PHASES, 0.0)),
            deadline=float("inf"),
        )
        return Stage(episode, policy, sandbox, tokenizer)

    return make
