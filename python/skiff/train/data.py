"""Tasks -> the files a run reads: `data/tasks.jsonl` for our agents, two parquet files for verl.

verl's rows carry a task's id only; the agent loop looks the task up. A task can hold whole test
suites, and verl copies each row's fields to every trajectory.
"""

from __future__ import annotations

import functools
from collections import Counter
from pathlib import Path

from skiff.config.schema import Config
from skiff.errors import ConfigError
from skiff.files import write_atomic
from skiff.tasks.sources import read_skip_list, resolve
from skiff.tasks.task import Task

TASKS = "tasks.jsonl"
EVERY = 5  # a profile without validation specs validates on every fifth task


def write_data(config: Config, folder: Path) -> dict[str, list[Task]]:
    """Write the profile's tasks to `folder`; tasks.jsonl comes last, so it stands for all of them.

    Returns the tasks by split. Raises as `select` does, and OSError.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    splits = select(config)
    folder.mkdir(parents=True, exist_ok=True)
    for split, tasks in splits.items():
        rows = [
            {
                "data_source": task.source,
                "prompt": [{"role": "user", "content": task.prompt}],
                "reward_model": {"style": "sandbox", "ground_truth": ""},
                "extra_info": {"index": index, "split": split, "task": task.id},
            }
            for index, task in enumerate(tasks)
        ]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    lines = [task.model_dump_json() for tasks in splits.values() for task in tasks]
    write_atomic(folder / TASKS, "\n".join(lines) + "\n")
    return splits


def select(config: Config) -> dict[str, list[Task]]:
    """Resolve the profile's task specs into "train" and "validation".

    Raises ConfigError when a split is empty, smaller than one step, or holds a task of the other or
    one task twice; TaskError from the sources.
    """
    skip = read_skip_list(config.tasks.skip_list) if config.tasks.skip_list else set()
    train = _resolve(config.tasks.train, skip)
    validation = _resolve(config.tasks.validation, skip)
    if not config.tasks.validation:
        validation = train[::EVERY]
        train = [task for number, task in enumerate(train) if number % EVERY]
    splits = {
        "train": train[: config.tasks.train_limit],
        "validation": validation[: config.tasks.validation_limit],
    }
    _check(config, splits)
    return splits


@functools.lru_cache(maxsize=1)
def read_tasks(path: Path) -> dict[str, Task]:
    """Task id -> Task from a file that `write_data` wrote; cached per process."""
    with path.open(encoding="utf-8") as lines:
        tasks = [Task.model_validate_json(line) for line in lines if line.strip()]
    return {task.id: task for task in tasks}


def _resolve(specs: tuple[str, ...], skip: set[str]) -> list[Task]:
    return [task for spec in specs for task in resolve(spec, skip=skip)]


def _check(config: Config, splits: dict[str, list[Task]]) -> None:
    for split, tasks in splits.items():
        if not tasks:
            raise ConfigError(
                "resolves to no task",
                where=f"tasks.{split} = {list(getattr(config.tasks, split))}",
                remedy="`skiff tasks list SPEC` shows what a spec holds",
            )
        twice = [task_id for task_id, n in Counter(task.id for task in tasks).items() if n > 1]
        if twice:
            raise ConfigError(
                f"holds {len(twice)} tasks twice, e.g. {min(twice)}",
                where=f"tasks.{split}",
                remedy="name each spec once",
            )
    if len(splits["train"]) < config.rollout.prompts_per_step:
        raise ConfigError(
            f"holds {len(splits['train'])} tasks, fewer than rollout.prompts_per_step "
            f"({config.rollout.prompts_per_step})",
            where="tasks.train",
            remedy="add tasks or lower rollout.prompts_per_step",
        )
    both = {task.id for task in splits["train"]} & {task.id for task in splits["validation"]}
    if both:
        raise ConfigError(
            f"holds {len(both)} tasks of tasks.train, e.g. {min(both)}",
            where="tasks.validation",
            remedy="validation must be disjoint: use other specs, or the limits",
        )
