"""`skiff tasks build|validate|solve` and `skiff images pull`: work on tasks outside of a run."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from skiff.agents.trajectory import Trajectory
from skiff.config import Config, load_config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.images.task_sets import build_r2e_shaped, build_swebench_shaped, build_synthetic
from skiff.launch.local import RunningServer, runtime_server
from skiff.sandbox.client import RuntimeClient
from skiff.tasks.sources import resolve
from skiff.tasks.task import Task
from skiff.tasks.validate import Verdict
from skiff.tasks.validate import validate as validate_tasks

WATCH_SECONDS = 1.0  # between two looks at the server, which also reap what its sandboxes leave


def build(
    shape: str,
    package: str,
    config: Config,
    *,
    count: int,
    seed: int,
    extra: Sequence[str],
    console: Console,
) -> Path:
    """Make an image and tasks of `shape` from a package; returns the file of tasks or rows."""

    async def work(client: RuntimeClient, progress: Progress) -> Path:
        if shape == "synthetic":
            path, _ = await build_synthetic(
                package, client, config, count=count, seed=seed, progress=progress, extra=extra
            )
            return path
        make = build_r2e_shaped if shape == "r2e-shaped" else build_swebench_shaped
        return await make(package, client, config, seed=seed, progress=progress, extra=extra)

    return _with_sandboxes(config, console, work)


def validate(
    specs: Sequence[str], config: Config, *, limit: int | None, console: Console
) -> list[Verdict]:
    """The verdicts of all tasks of the specs."""
    tasks = _resolve(specs, limit)

    async def work(client: RuntimeClient, progress: Progress) -> list[Verdict]:
        return await validate_tasks(tasks, client, config, progress=progress)

    return _with_sandboxes(config, console, work)


def solve(
    specs: Sequence[str], config: Config, *, limit: int | None, console: Console
) -> list[Trajectory]:
    """The scripted solver's trajectories on all tasks of the specs."""
    from skiff.train.solve import solve as solve_tasks  # imports transformers

    tasks = _resolve(specs, limit)

    async def work(client: RuntimeClient, progress: Progress) -> list[Trajectory]:
        bar = progress.add_task("solve", total=len(tasks))
        return await solve_tasks(tasks, client, config, done=lambda: progress.advance(bar))

    return _with_sandboxes(config, console, work)


def image_names(sources: Sequence[str]) -> list[str]:
    """The images of the tasks of profiles (*.toml) and task specs, each once."""
    from skiff.train.data import select

    tasks: list[Task] = []
    for source in sources:
        if source.endswith(".toml"):
            for split in select(load_config(Path(source))).values():
                tasks += split
        else:
            tasks += resolve(source)
    return list(dict.fromkeys(task.image for task in tasks))


def _resolve(specs: Sequence[str], limit: int | None) -> list[Task]:
    return [task for spec in specs for task in resolve(spec, limit=limit)]


def _with_sandboxes[T](
    config: Config, console: Console, work: Callable[[RuntimeClient, Progress], Awaitable[T]]
) -> T:
    ensure_sandbox_image()

    async def main(server: RunningServer) -> T:
        client = RuntimeClient([server.url], server.key, start_seconds=config.runtime.start_seconds)
        async with client:
            with Progress(console=console) as progress:
                working = asyncio.ensure_future(work(client, progress))
                try:
                    while not (await asyncio.wait([working], timeout=WATCH_SECONDS))[0]:
                        server.check()
                    return working.result()
                finally:
                    working.cancel()

    with runtime_server(config) as server:
        return asyncio.run(main(server))
