"""The scripted policy: the answers in order, cut where the engine would cut."""

from __future__ import annotations

from typing import Any

import pytest
from skiff.agents.scripted import ScriptedPolicy, render_answers, solution_answers
from skiff.errors import TaskError
from skiff.tasks.task import Task


async def test_answers_come_in_order_for_each_trajectory(tokenizer: Any) -> None:
    policy = ScriptedPolicy(tokenizer, ["one", "two"])

    async def ask(request_id: str) -> str:
        generation = await policy.generate(request_id, [], {"max_tokens": 99})
        assert generation.log_probs == [0.0] * len(generation.token_ids)
        assert generation.stop == "stop"
        return str(tokenizer.decode(generation.token_ids))

    answers = [await ask("a"), await ask("a"), await ask("b"), await ask("a")]
    assert answers == ["one<|im_end|>", "two<|im_end|>", "one<|im_end|>", "two<|im_end|>"]


async def test_an_answer_is_cut_at_max_tokens(tokenizer: Any) -> None:
    generation = await ScriptedPolicy(tokenizer, ["x" * 50]).generate("a", [], {"max_tokens": 7})
    assert len(generation.token_ids) == len(generation.log_probs) == 7
    assert generation.stop == "length"


def test_a_solution_ends_the_trajectory(task: Task) -> None:
    assert solution_answers(task, "mini") == [
        "```bash\necho fixed > a.txt\n```",
        "```bash\nsubmit\n```",
    ]
    assert solution_answers(task, "openhands")[0].startswith("<function=terminal>\n")
    assert render_answers([], "openhands")[0].startswith("<function=finish>\n")


def test_a_task_without_a_solution_is_named(task: Task) -> None:
    with pytest.raises(TaskError, match="test:one: the task has no scripted solution"):
        solution_answers(task.model_copy(update={"solution": ()}), "mini")
