"""Traces become training examples whose ids are those of a real trajectory."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from skiff.agents.scripted import render_answers
from skiff.agents.tokens import Limits, TokenBuffer
from skiff.agents.trajectory import Generation, Trajectory
from skiff.config import Config
from skiff.errors import InfraError
from skiff.tasks import shell
from skiff.tasks.task import Task
from skiff.train import tiny, warm_start
from skiff.train.warm_start import Trace, _encode, _record, _segments, _variants

TASKS = shell.tasks("train")
LIMITS = Limits(prompt=5000, response=5000, context=9000, turn=1000)


def play(tokenizer: Any, task: Task, answers: Sequence[str], seen: Sequence[str]) -> Trajectory:
    """The token ids of a trajectory, made as the agents make them."""
    buffer = TokenBuffer.create(tokenizer, "qwen3", LIMITS)
    buffer.begin([{"role": "user", "content": task.prompt}], task_id=task.id)
    for number, text in enumerate(answers):
        ids = [*tokenizer.encode(text, add_special_tokens=False), tokenizer.eos_token_id]
        buffer.generated(Generation(ids, [0.0] * len(ids)), text)
        if number < len(seen):
            buffer.observe([{"role": "user", "content": seen[number]}])
    return Trajectory(
        task.id,
        prompt_ids=buffer.prompt_ids,
        response_ids=buffer.response_ids,
        response_mask=buffer.response_mask,
    )


def texts_of(task: Task) -> tuple[list[str], list[str]]:
    repair = task.solution[-1]
    return render_answers([shell.CHECK, repair], "mini"), [f"FAIL: see {repair}", "exit 0"]


@pytest.fixture(scope="module")
def letters() -> Any:
    return tiny.make_tokenizer()


@pytest.mark.parametrize("kind", [kind.name for kind in shell.KINDS])
def test_an_example_has_the_ids_of_the_trajectory(letters: Any, kind: str) -> None:
    task = next(task for task in TASKS if shell.kind_of(task) == kind)
    answers, seen = texts_of(task)
    (text, *_) = _variants(
        Trace(task, play(letters, task, answers, seen), task.solution[-1]),
        TASKS,
        letters,
        random.Random(0),
    )
    final = tiny.make_tokenizer(texts=[part for part, _ in text] * 4, size=600)
    assert len(final) > len(letters)  # merges, which could reach over a border
    ids, weights = _encode(final, text, 2.0)
    expected = play(final, task, answers, seen)
    assert ids == expected.prompt_ids + expected.response_ids
    assert weights == [0] * len(expected.prompt_ids) + [2 * m for m in expected.response_mask]


def test_variants_are_the_trace_of_another_task(letters: Any) -> None:
    task = TASKS[0]
    trace = Trace(task, play(letters, task, *texts_of(task)), task.solution[-1])
    variants = list(_variants(trace, TASKS, letters, random.Random(0)))
    assert len(variants) == warm_start.VARIANTS
    possible = {
        "".join(part for part, _ in encoded(letters, other))
        for other in TASKS
        if shell.kind_of(other) == shell.kind_of(task)
    }
    texts = ["".join(part for part, _ in variant) for variant in variants]
    assert len(set(texts)) == len(texts)
    assert set(texts) <= possible
    assert {tuple(spoken for _, spoken in v) for v in variants} == {(0, 1, 0, 1, 0, 1)}


def test_weights_are_the_shares_that_the_docstring_names() -> None:
    task = TASKS[0]
    traces = [
        Trace(task, Trajectory(task.id), repair) for repair in (*shell.repertoire(task), None)
    ]
    share = {trace.repair: trace.draws * trace.loss_weight for trace in traces}
    assert share[None] / sum(share.values()) == pytest.approx(7 / 10)
    wrong = {share[repair] for repair in share if repair not in (None, task.solution[-1])}
    assert wrong == {share[task.solution[-1]] / 6}


def encoded(tokenizer: Any, task: Task) -> list[tuple[str, int]]:
    trajectory = play(tokenizer, task, *texts_of(task))
    ids = trajectory.prompt_ids + trajectory.response_ids
    mask = [0] * len(trajectory.prompt_ids) + trajectory.response_mask
    return [(tokenizer.decode(part), spoken) for part, spoken in _segments(ids, mask)]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ([], []),
        ([1], [([0], 1)]),
        ([0, 0, 1, 0], [([0, 1], 0), ([2], 1), ([3], 0)]),
    ],
)
def test_segments_are_runs_of_one_speaker(mask: list[int], expected: Any) -> None:
    assert list(_segments(list(range(len(mask))), mask)) == expected


class NoClient:
    async def __aenter__(self) -> NoClient:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None


@pytest.mark.parametrize(
    ("reward", "words"), [(None, "sandbox gone"), (1.0, "got reward 1.0"), (0.0, "got reward 0.0")]
)
async def test_a_trace_that_fails_is_one_clear_error(
    runtime_config: Callable[..., Config],
    letters: Any,
    monkeypatch: pytest.MonkeyPatch,
    reward: float | None,
    words: str,
) -> None:
    async def run_trajectory(task: Task, **_: Any) -> Trajectory:
        return Trajectory(task.id, reward=reward, stop_detail="sandbox gone")

    monkeypatch.setattr(warm_start, "run_trajectory", run_trajectory)
    client: Any = NoClient()
    with pytest.raises(InfraError, match=words):
        await _record(runtime_config(), client, letters, TASKS, lambda what, share: None)


def test_a_real_supervised_phase_learns(
    runtime_config: Callable[..., Config], tmp_path: Any, letters: Any
) -> None:
    config = runtime_config(
        model={"path": "warm-start", "context_tokens": 512},
        rollout={"prompt_tokens": 256, "response_tokens": 256},
        agent={"turn_tokens": 64},
        warm_start={"steps": 30, "batch": 2, "layers": 1, "hidden": 64},
    )
    text = encoded(letters, TASKS[0])
    tokenizer = tiny.make_tokenizer(tmp_path, [part for part, _ in text] * 3)
    model = tiny.make_model(tmp_path, tokenizer, layers=1, hidden=64, context_tokens=512)
    examples = [_encode(tokenizer, text, 1.0)] * 2
    before = float(warm_start._loss(model, tokenizer.pad_token_id, examples))
    told: list[float] = []
    warm_start._supervise(
        config,
        model,
        tokenizer,
        examples,
        [1.0, 1.0],
        random.Random(0),
        lambda _, share: told.append(share),
    )
    assert float(warm_start._loss(model, tokenizer.pad_token_id, examples)) < before / 2
    assert told == sorted(told)
    assert told[-1] == 1.0
