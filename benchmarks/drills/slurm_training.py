"""Whole trainings on a real Slurm of this host, with the real halves -> slurm_training.md:
python benchmarks/drills/slurm_training.py [het two-jobs attach two-nodes]

A random tiny model takes one step on the CPU: in a heterogeneous job, in two jobs, with a server of
another run, and with a trainer of two nodes (one Ray over both). For each the table says the jobs'
states and the seconds from submission to end. Ends with 1 where a run has not made its step, or has
left a process behind.

Needs Slurm's programs, munge and podman. A run takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
from skiff import events
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
from skiff.launch.slurm import scancel
from skiff.launch.status import jobs_of
from skiff.launch.submit import cancel, submit
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.tasks import shell
from skiff.train import tiny

TOOL = Path(__file__).parents[2] / "tools" / "slurm-test"
TABLE = Path(__file__).with_suffix(".md")
SECONDS = 1200.0


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    shapes = parser.parse_args().shapes or list(SHAPES)
    ensure_sandbox_image()
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="skiff-slurm-") as name, cluster(Path(name)):
        model = make_model(Path(name) / "model")
        for shape in shapes:
            found = SHAPES[shape](Path(name), model)
            rows.append(f"| {shape} | " + " | ".join(found) + " |")
            print(rows[-1], flush=True)
            failed |= "**" in rows[-1]
    head = ["| shape | jobs | s | steps | left behind |", "|---|---|---:|---:|---|"]
    TABLE.write_text("# One step on Slurm\n\n" + "\n".join([*head, *rows]) + "\n")
    sys.exit(int(failed))


@contextmanager
def cluster(folder: Path) -> Iterator[None]:
    """A Slurm in the folder `one`, which the programs of this process reach."""
    os.environ["SLURM_CONF"] = str(folder / "one" / "slurm.conf")
    subprocess.run([TOOL, "start", folder / "one"], check=True)
    try:
        yield
    finally:
        subprocess.run([TOOL, "stop", folder / "one"], check=True)


def make_model(folder: Path) -> str:
    """A random tiny Qwen3 whose tokenizer knows the words of the shell tasks."""
    folder.mkdir()
    tasks = shell.tasks("train")[:256]
    texts = [text for task in tasks for text in (task.prompt, *(f.content for f in task.files))]
    tokenizer = tiny.make_tokenizer(folder, texts)
    tiny.make_model(folder, tokenizer, layers=2, hidden=64, context_tokens=6144)
    return str(folder)


def profile(folder: Path, model: str, **changed: dict[str, Any]) -> Config:
    """One small step."""
    data: dict[str, dict[str, Any]] = {
        "run": {"name": "drill", "folder": str(folder / "runs")},
        "model": {"path": model, "context_tokens": 6144},
        "tasks": {
            "train": ["shell:train"],
            "validation": ["shell:validation"],
            "train_limit": 16,
            "validation_limit": 2,
        },
        "rollout": {
            "trajectories_per_prompt": 2,
            "prompts_per_step": 2,
            "prompt_tokens": 5120,
            "response_tokens": 512,
        },
        "agent": {"max_turns": 2, "turn_tokens": 24, "command_seconds": 10},
        "runtime": {"host": "0.0.0.0"},
        "train": {"steps": 1, "save_every": 1, "validate_first": False, "export": False},
        "hardware": {"platform": "cpu", "dtype": "float32", "engine_cache_gib": 1},
        "slurm": {
            "runtime": {"partition": "cpu", "cpus": 2},
            "trainer": {"partition": "gpus", "cpus": 2},
        },
    }
    for section, values in changed.items():
        data[section] |= values
    return parse_config(data)


def het(folder: Path, model: str) -> list[str]:
    return follow(profile(folder, model))


def two_jobs(folder: Path, model: str) -> list[str]:
    config = profile(folder, model)
    slurm = config.slurm.model_copy(update={"mode": "two-jobs"}) if config.slurm else None
    return follow(config.model_copy(update={"slurm": slurm}))


def attach(folder: Path, model: str) -> list[str]:
    config = profile(folder, model, run={"name": "served", "folder": str(folder / "runs")})
    served = run_folder.make(config)
    submit(config, served, runtime_only=True)
    try:
        meeting = served / "rendezvous" / "01"
        [place] = until(lambda: list(meeting.glob("runtime-*.json")))
        os.environ[KEY_FILE_VARIABLE] = str(served / "rendezvous" / "key")
        url = json.loads(place.read_text())["url"]
        return follow(profile(folder, model, runtime={"host": "0.0.0.0", "url": url}))
    finally:
        cancel(served)
        until(lambda: all(job.ended for _, job in jobs_of(served)))


def two_nodes(folder: Path, model: str) -> list[str]:
    hardware = {"platform": "cpu", "dtype": "float32", "engine_cache_gib": 1, "nodes": 2}
    return follow(profile(folder, model, hardware=hardware))


SHAPES: dict[str, Callable[[Path, str], list[str]]] = {
    "het": het,
    "two-jobs": two_jobs,
    "attach": attach,
    "two-nodes": two_nodes,
}


def follow(config: Config) -> list[str]:
    """Submit it; the cells of its row when it has ended. What is wrong is bold."""
    run_dir = run_folder.make(config)
    begun = time.monotonic()
    ids = submit(config, run_dir)
    try:
        until(lambda: all(job.ended for _, job in jobs_of(run_dir)))
    finally:
        scancel(list(ids.values()))
    seconds = time.monotonic() - begun
    jobs = jobs_of(run_dir)
    states = ", ".join(f"{half} {job.state.lower()} ({job.exit})" for half, job in jobs)
    steps = [event["step"] for event in events.read(run_dir, "step")]
    left = processes_of(run_dir)
    if any(job.exit for _, job in jobs) or steps != [1]:
        states = f"**{states}**"
        for path in sorted((run_dir / "logs").iterdir()):
            print(f"--- {path}\n" + "\n".join(path.read_text().splitlines()[-15:]))
    return [states, f"{seconds:.0f}", str(len(steps)), f"**{left}**" if left else "nothing"]


def processes_of(run_dir: Path) -> list[str]:
    """Living processes that name the run, but for ourselves."""
    commands = [" ".join(each.info["cmdline"] or []) for each in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(run_dir) in command]


def until(condition: Callable[[], Any]) -> Any:
    """What `condition` gives as soon as that is true."""
    deadline = time.monotonic() + SECONDS
    while not (found := condition()):
        if time.monotonic() > deadline:
            sys.exit(f"error: nothing more has happened within {SECONDS:g} s")
        time.sleep(0.5)
    return found


if __name__ == "__main__":
    main()
