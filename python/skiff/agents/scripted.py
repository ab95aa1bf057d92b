"""A policy without a model: it answers with a task's own solution, in the agent's format.

It drives both agents in tests, in `skiff tasks solve` and for the warm start's traces.
Not covered: choosing; the caller decides which commands are played.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from skiff.agents import mini
from skiff.agents.trajectory import Generation
from skiff.errors import TaskError
from skiff.tasks.task import Task


class ScriptedPolicy:
    """Plays `answers` in order for every request id, then repeats the last one.

    Log-probs are 0.0: the script is certain.
    """

    def __init__(self, tokenizer: Any, answers: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._answers = answers
        self._played: Counter[str] = Counter()

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: dict[str, Any]
    ) -> Generation:
        """The next answer, closed by the end-of-sequence id, cut at sampling["max_tokens"]."""
        index = min(self._played[request_id], len(self._answers) - 1)
        self._played[request_id] += 1
        ids = self._tokenizer.encode(self._answers[index], add_special_tokens=False)
        ids = [*ids, self._tokenizer.eos_token_id]
        room = sampling["max_tokens"]
        stop = "stop" if len(ids) <= room else "length"
        return Generation(token_ids=ids[:room], log_probs=[0.0] * len(ids[:room]), stop=stop)


def solution_answers(task: Task, agent: str) -> list[str]:
    """The task's solution as answers of `agent`, ending it. Raises TaskError without a solution."""
    if not task.solution:
        raise TaskError(
            "the task has no scripted solution",
            where=task.id,
            remedy="use a task source that has one (shell, synthetic), or a model as the policy",
        )
    return render_answers(task.solution, agent)


def render_answers(commands: Sequence[str], agent: str) -> list[str]:
    """`commands` as answers of `agent` ('mini' or 'openhands'), and the answer that ends it."""
    if agent == "mini":
        return [mini.render_command(command) for command in (*commands, mini.SUBMIT)]
    calls = [_call("terminal", "command", command) for command in commands]
    return [*calls, _call("finish", "message", "done")]


def _call(function: str, parameter: str, value: str) -> str:
    """A call in the XML format that the OpenHands SDK parses."""
    return f"<function={function}>\n<parameter={parameter}>{value}</parameter>\n</function>"
