"""`skiff tasks validate`: a task is good when its gold patch scores 1.0 and no patch scores 0.0.

The gold patch of a task that has only a scripted solution is what the solution leaves behind.
Not covered: flaky tests that happen to behave; validate twice to find most of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.progress import Progress

from skiff.config.schema import Config
from skiff.errors import SkiffError
from skiff.files import write_atomic
from skiff.sandbox.client import RuntimeClient, SandboxSpec
from skiff.tasks.lifecycle import GradeResult, extract_patch, fresh, grade, prepare
from skiff.tasks.task import Task


@dataclass(frozen=True)
class Verdict:
    """`gold` and `empty` are rewards; None where our own machinery failed, with `problem`."""

    task_id: str
    gold: float | None
    empty: float | None
    problem: str = ""

    @property
    def valid(self) -> bool:
        return self.gold == 1.0 and self.empty == 0.0

    @property
    def reason(self) -> str:
        """Why the task is not valid, in one line."""
        return " ".join(self.problem.split())


async def validate(
    tasks: Sequence[Task], client: RuntimeClient, config: Config, *, progress: Progress
) -> list[Verdict]:
    """Grade every task with its gold patch and with none; verdicts in the order of `tasks`.

    At most config.rollout.max_concurrent tasks are under way. A task whose sandbox fails gets a
    verdict with a problem; the others go on.
    """
    bar = progress.add_task("validate", total=len(tasks))
    gate = asyncio.Semaphore(config.rollout.max_concurrent)

    async def one(task: Task) -> Verdict:
        async with gate:
            verdict = await _verdict(task, client, config)
        progress.advance(bar)
        return verdict

    return await asyncio.gather(*(one(task) for task in tasks))


def write_skip_list(path: Path, verdicts: Sequence[Verdict]) -> int:
    """Write the ids that are not valid, each with its reason, for `tasks.skip_list`; their number.

    The file is complete or as before.
    """
    bad = [verdict for verdict in verdicts if not verdict.valid]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(f"{verdict.task_id} {verdict.reason}\n" for verdict in bad))
    return len(bad)


async def _verdict(task: Task, client: RuntimeClient, config: Config) -> Verdict:
    spec = SandboxSpec.from_config(config, image=task.image, workdir=task.workdir, env=task.env)
    seconds = config.agent.grade_seconds
    try:
        patch = await _gold_patch(task, client, spec, config)
        gold = await grade(client, spec, task, patch, timeout=seconds)
        empty = await grade(client, spec, task, b"", timeout=seconds)
    except SkiffError as error:
        return Verdict(task.id, None, None, str(error))
    return Verdict(task.id, gold.reward, empty.reward, _problem(gold, empty))


async def _gold_patch(
    task: Task, client: RuntimeClient, spec: SandboxSpec, config: Config
) -> bytes:
    """The task's own, or the work of its scripted solution in a sandbox."""
    if task.gold_patch or not task.solution:
        return task.gold_patch.encode()
    async with client.sandbox(fresh(spec)) as sandbox:
        await prepare(sandbox, task, timeout=config.runtime.start_seconds)
        for command in task.solution:
            await sandbox.run(command, timeout=config.agent.command_seconds, cwd=task.workdir)
        return await extract_patch(sandbox, task, timeout=config.agent.command_seconds)


def _problem(gold: GradeResult, empty: GradeResult) -> str:
    if gold.reward != 1.0:
        return f"the gold patch scores {gold.reward}: {gold.detail}"
    if empty.reward != 0.0:
        return f"no patch scores {empty.reward}: {empty.detail}"
    return ""
