"""Warm start of the demo: a tiny Qwen3 learns an agent's format from a scripted solver's traces.

The solver is a poor one. It runs the check; seven times in ten it then gives up; else it says what
the check said and plays a repair of its repertoire by chance, the one that helps six times as often
as any other. So the model learns how to act and which acts there are; reinforcement learning has
to teach it not to give up and which repair fits. The traces are recorded in real sandboxes, one per
fault and repair, and multiplied by exchanging names. Not covered: supervised fine-tuning of
anything larger.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skiff.agents.run import run_trajectory
from skiff.agents.scripted import ScriptedPolicy, render_answers
from skiff.agents.trajectory import Trajectory
from skiff.config import Config
from skiff.errors import InfraError
from skiff.sandbox.client import RuntimeClient
from skiff.tasks import shell
from skiff.tasks.task import Task
from skiff.train import tiny
from skiff.train.solve import with_room

Progress = Callable[[str, float], None]  # what is done, share of it
Text = list[tuple[str, int]]  # parts of a trace, 1 where the policy spoke
Example = tuple[list[int], list[float]]  # token ids, weight in the loss (0: not the policy's)

VARIANTS = 64  # of each recorded trace, itself included
GIVES_UP = 0.7  # share of the solver's trajectories
GIVES_UP_DRAWN = 0.25  # share of the examples: they teach little, so fewer of them weigh more
RIGHT = 6  # how often the right repair is drawn for each time that a given wrong one is
ROOM = 30_000  # tokens
REPAIRS = len(shell.KINDS) - 1 + RIGHT  # draws of all repairs of one kind of fault
TIME_CHECK = 10  # optimiser steps between two looks at the clock


@dataclass(frozen=True)
class Trace:
    """One recorded trajectory and the task that it was recorded on.

    `repair` is None where the solver gave up.
    """

    task: Task
    trajectory: Trajectory
    repair: str | None

    @property
    def draws(self) -> float:
        """How often it is drawn for each time that the trace of a given wrong repair is."""
        if self.repair is None:
            return REPAIRS * _odds(GIVES_UP_DRAWN)
        return RIGHT if self.repair == self.task.solution[-1] else 1

    @property
    def loss_weight(self) -> float:
        """Of its tokens; draws times weight is the share of the solver's trajectories."""
        return _odds(GIVES_UP) / _odds(GIVES_UP_DRAWN) if self.repair is None else 1.0


def _odds(share: float) -> float:
    return share / (1 - share)


def warm_start(config: Config, client: RuntimeClient, folder: Path, progress: Progress) -> None:
    """Make the model, record traces, train on them, write `folder` (a Hugging Face folder).

    warm_start.seconds bounds the supervised part. Raises InfraError when no trace can be made.
    """
    settings = config.warm_start
    assert settings is not None  # checked with the config
    tasks = shell.tasks("train")
    letters = tiny.make_tokenizer()  # bytes: the traces themselves are the final one's corpus
    traces = asyncio.run(_record(with_room(config, ROOM), client, letters, tasks, progress))
    rng = random.Random(config.run.seed)
    texts = [(text, trace) for trace in traces for text in _variants(trace, tasks, letters, rng)]
    tokenizer = tiny.make_tokenizer(folder, (part for text, _ in texts for part, _ in text))
    examples = [_encode(tokenizer, text, trace.loss_weight) for text, trace in texts]
    draws = [trace.draws for _, trace in texts]
    model = tiny.make_model(
        folder,
        tokenizer,
        layers=settings.layers,
        hidden=settings.hidden,
        context_tokens=config.model.context_tokens,
        seed=config.run.seed,
    )
    _supervise(config, model, tokenizer, examples, draws, rng, progress)
    tiny.save(folder, model, tokenizer)


async def _record(
    config: Config, client: RuntimeClient, tokenizer: Any, tasks: Sequence[Task], progress: Progress
) -> list[Trace]:
    """One trajectory per kind of fault and repair, and one per kind without; graded: only the right
    repair may solve."""
    kinds = {shell.kind_of(task): task for task in tasks}
    wanted = [
        (task, repair) for task in kinds.values() for repair in (*shell.repertoire(task), None)
    ]
    slots = asyncio.Semaphore(config.runtime.concurrent_starts)
    done = 0

    async def record(task: Task, repair: str | None) -> Trace:
        nonlocal done
        commands = [shell.CHECK] if repair is None else [shell.CHECK, repair]
        answers = render_answers(commands, config.agent.name)
        if repair is not None:
            answers[1] = f"{shell.symptom(task)}\n{answers[1]}"
        async with slots:
            trajectory = await run_trajectory(
                task,
                config=config,
                policy=ScriptedPolicy(tokenizer, answers),
                tokenizer=tokenizer,
                model_type="qwen3",
                client=client,
                sampling={},
                request_id=f"{task.id}: {repair or 'gives up'}",
            )
        if trajectory.reward is None:
            raise InfraError(trajectory.stop_detail, where=f"warm start, {task.id}")
        right = repair == task.solution[-1]
        if (trajectory.reward == 1.0) != right:
            raise InfraError(
                f"the repair {repair!r} got reward {trajectory.reward}",
                where=task.id,
                remedy="the sandbox image differs from what the shell tasks expect",
            )
        done += 1
        progress("recording traces in sandboxes", done / len(wanted))
        return Trace(task, trajectory, repair)

    try:
        async with client, asyncio.TaskGroup() as group:
            running = [group.create_task(record(task, repair)) for task, repair in wanted]
    except ExceptionGroup as failures:  # the first says it; the group has cancelled the others
        raise failures.exceptions[0] from None
    return [task.result() for task in running]


def _variants(
    trace: Trace, tasks: Sequence[Task], tokenizer: Any, rng: random.Random
) -> Iterator[Text]:
    """The recorded trace as text, then copies with the names of other folders of the same fault."""
    trajectory = trace.trajectory
    ids = trajectory.prompt_ids + trajectory.response_ids
    mask = [0] * len(trajectory.prompt_ids) + trajectory.response_mask
    text = [(tokenizer.decode(part), spoken) for part, spoken in _segments(ids, mask)]
    yield text
    kind = shell.kind_of(trace.task)
    others = [task for task in tasks if shell.kind_of(task) == kind and task is not trace.task]
    for other in rng.sample(others, min(VARIANTS - 1, len(others))):
        rename = shell.renaming(trace.task, other)
        yield [(rename(part), spoken) for part, spoken in text]


def _encode(tokenizer: Any, text: Text, weight: float) -> Example:
    """Parts begin and end at ChatML marks, which never merge, so each is encoded by itself."""
    ids: list[int] = []
    weights: list[float] = []
    for part, spoken in text:
        new = tokenizer.encode(part, add_special_tokens=False)
        ids += new
        weights += [weight * spoken] * len(new)
    return ids, weights


def _segments(ids: list[int], mask: list[int]) -> Iterator[tuple[list[int], int]]:
    """Runs of equal mask, in order."""
    begin = 0
    for position in range(1, len(ids) + 1):
        if position == len(ids) or mask[position] != mask[begin]:
            yield ids[begin:position], mask[begin]
            begin = position


def _supervise(
    config: Config,
    model: Any,
    tokenizer: Any,
    examples: list[Example],
    draws: list[float],
    rng: random.Random,
    progress: Progress,
) -> None:
    """Cross-entropy on the solver's tokens until warm_start.steps or .seconds, whichever is first.

    The learning rate falls with the share that is used up, so that a slow machine ends on a low
    one, too.
    """
    import torch

    settings = config.warm_start
    assert settings is not None
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=settings.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
    )
    begun, used = time.monotonic(), 0.0
    for step in range(settings.steps):
        if step % TIME_CHECK == 0:
            used = max((time.monotonic() - begun) / settings.seconds, step / settings.steps)
            progress("supervised steps", min(used, 1.0))
            if used >= 1.0:
                break
        for group in optimiser.param_groups:
            group["lr"] = settings.learning_rate * min(1.0, (step + 1) / 30) * (1 - 0.95 * used)
        loss = _loss(model, tokenizer.pad_token_id, rng.choices(examples, draws, k=settings.batch))
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    if not math.isfinite(loss.item()):
        raise InfraError(
            "the supervised loss is not finite", remedy="lower warm_start.learning_rate"
        )
    progress(f"supervised: {step + 1} steps, loss {loss.item():.3f}", 1.0)


def _loss(model: Any, pad: int, examples: Sequence[Example]) -> Any:
    """Weighted mean cross-entropy. Padding stands right, where causal attention cannot see it, so
    no attention mask is needed."""
    import torch

    length = max(len(ids) for ids, _ in examples)
    ids = torch.tensor([row + [pad] * (length - len(row)) for row, _ in examples])
    weights = torch.tensor([row + [0.0] * (length - len(row)) for _, row in examples])[:, 1:]
    spoken = weights > 0
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1][spoken]
    losses = torch.nn.functional.cross_entropy(
        model.lm_head(hidden), ids[:, 1:][spoken], reduction="none"
    )
    return (losses * weights[spoken]).sum() / weights[spoken].sum()
