"""kill -9 of the trainer at random points of a real run -> trainer_killed.md:
python benchmarks/drills/trainer_killed.py [--kills 20] [--seed 0]

A random tiny model on the CPU saves at each step. In each start the trainer gets SIGKILL at a
random time within three steps after its first trajectory, and then the run is resumed. For each
kill the table says which step was the last one done, which checkpoint the next start went on from,
and what of torn or damaged ones it has passed over. A step that was done twice must have drawn the
same tasks: the position in the data is the checkpoint's. All starts must be one run of W&B, and the
optimiser must have counted all steps. At last the trainer is asked to save and end, as it is before
a time limit. Ends with 1 where more than a step was lost or anything else is wrong.

Needs podman. A start takes about a minute on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from skiff import events
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.errors import InfraError
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import local, run_folder
from skiff.tasks import shell
from skiff.train import manifest, resume, tiny
from skiff.train.save_request import request_file

TABLE = Path(__file__).with_suffix(".md")
STEPS_TO_A_KILL = 3
FIRST_STEP_SECONDS = 10.0  # until one was measured
START_SECONDS = 600.0


@dataclass(frozen=True)
class Kill:
    """One kill and the start after it.

    after    seconds from the first trajectory to the kill
    done     newest step whose metrics were written
    resumed  step of the checkpoint that the next start went on from
    passed   checkpoints that it has passed over, and why
    """

    after: float
    done: int
    resumed: int
    passed: str

    @property
    def lost(self) -> int:
        return max(0, self.done - self.resumed)

    def row(self, number: int) -> str:
        cells = (number, f"{self.after:.1f}", self.done, self.resumed, self.lost, self.passed or "")
        return "| " + " | ".join(map(str, cells)) + " |"


@dataclass
class Drill:
    """A run, and what is done to it."""

    config: Config
    run_dir: Path
    chance: random.Random
    attempt: int = 0

    def kill(self) -> float:
        """One start that is killed; returns the seconds after its first trajectory."""
        after = self.chance.uniform(0, STEPS_TO_A_KILL * self.step_seconds())

        def act(since_first: float) -> None:
            if since_first >= after:
                with contextlib.suppress(LookupError, psutil.NoSuchProcess):
                    trainer(self.run_dir).kill()

        self.start(act)
        return after

    def save(self) -> None:
        """One start that is asked to save and end."""
        self.start(lambda _: request_file(self.run_dir, self.attempt).touch())

    def start(self, act: Callable[[float], None]) -> None:
        """One attempt to its end. `act` is called often with the seconds since its first
        trajectory."""
        self.attempt = run_folder.new_attempt(self.run_dir)
        run_folder.meeting(self.run_dir, self.attempt)
        begun, before = time.time(), processes()
        first: list[float] = []

        def watch() -> None:
            now = time.time()
            if not first and any(event["time"] > begun for event in self.read("trajectory")):
                first.append(now)
            if first:
                act(now - first[0])
            elif now > begun + START_SECONDS:
                raise InfraError(f"no trajectory within {START_SECONDS:g} s")

        with contextlib.suppress(InfraError):  # that it was killed
            local.run_attempt(self.config, self.run_dir, self.attempt, watch=watch)
        if not first:
            sys.exit(f"error: attempt {self.attempt} did not start; logs: {self.run_dir}/logs")
        if left := processes() - before:
            sys.exit(f"error: attempt {self.attempt} has left processes behind: {left}")

    def read(self, kind: str) -> list[dict[str, Any]]:
        return list(events.read(self.run_dir, kind))

    def step_seconds(self) -> float:
        seconds = [event["seconds"]["step"] for event in self.read("step")]
        return statistics.median(seconds) if seconds else FIRST_STEP_SECONDS

    def done(self) -> int:
        return max((event["step"] for event in self.read("step")), default=0)

    def go_on(self) -> tuple[int, str]:
        """What the next start will do first: the step, and what is passed over."""
        told = len(self.read("checkpoint_skipped"))
        step = resume.settle(self.run_dir)
        passed = self.read("checkpoint_skipped")[told:]
        return step, "; ".join(event["what"] for event in passed)

    def updates(self, step: int) -> int:
        """The optimiser's own count in a checkpoint; a step of this run is one update."""
        import torch

        folder = resume.checkpoint(self.run_dir / "ckpt", step) / "actor"
        state = torch.load(next(folder.glob("optim_*.pt")), weights_only=False)["state"]
        return int(max(entry["step"] for entry in state.values()))

    def wandb_runs(self) -> tuple[int, int]:
        """Starts that W&B has recorded, and how many runs they are to it."""
        names = [path.name for path in self.run_dir.glob("metrics/wandb/offline-run-*")]
        return len(names), len({name.rpartition("-")[2] for name in names})

    def other_tasks(self) -> list[int]:
        """Steps that were done twice with other tasks than before."""
        starts = [event["time"] for event in self.read("phase_begin") if event["name"] == "runtime"]
        drawn: dict[int, list[set[str]]] = {}
        for begin, end in zip(starts, [*starts[1:], time.time()], strict=True):
            steps: dict[int, set[str]] = {}
            for event in self.read("trajectory"):
                if begin <= event["time"] < end and event["split"] == "train":
                    steps.setdefault(event["step"], set()).add(event["task"])
            for step, tasks in steps.items():
                drawn.setdefault(step, []).append(tasks)
        # A start that was killed may have drawn a part only.
        return [
            step
            for step, parts in drawn.items()
            if len(set().union(*parts)) > self.config.rollout.prompts_per_step
        ]


def main(kills: int, seed: int) -> None:
    ensure_sandbox_image()
    with tempfile.TemporaryDirectory(prefix="skiff-drill-") as scratch:
        config = make_config(Path(scratch))
        drill = Drill(config, run_folder.make(config), random.Random(seed))
        begun = time.monotonic()
        found = []
        for number in range(1, kills + 1):
            after = drill.kill()
            found.append(Kill(after, drill.done(), *drill.go_on()))
            print(found[-1].row(number), flush=True)
        before = drill.done()
        drill.save()
        saved = resume.newest(drill.run_dir)
        wrong = manifest.fault(resume.checkpoint(drill.run_dir / "ckpt", saved))
        minutes = (time.monotonic() - begun) / 60
        others, last = drill.other_tasks(), drill.done()
        starts, runs = drill.wandb_runs()
        updates = drill.updates(saved)
        lines = [
            f"Seed {seed}, {minutes:.0f} minutes, {before} steps; a step takes"
            f" {drill.step_seconds():.1f} s.",
            "",
            "| kill | s after the first trajectory | step done | goes on from | steps lost |"
            " passed over |",
            "|---|---|---|---|---|---|",
            *(kill.row(number) for number, kill in enumerate(found, 1)),
            "",
            f"At most {max((kill.lost for kill in found), default=0)} step lost. Steps that drew"
            f" other tasks when they were done again: {others or 'none'}. Asked to save and end"
            f" after step {before}: the last step is {last}, the checkpoint of step {saved} is"
            f" {wrong or 'whole'}. The optimiser has counted {updates} updates. To W&B {starts}"
            f" starts are {runs} run.",
        ]
    print("\n".join(lines))
    TABLE.write_text("# The trainer is killed\n\n" + "\n".join(lines) + "\n")
    good = not others and not wrong and saved == last == updates > before and runs == 1
    sys.exit(0 if good and all(kill.lost <= 1 for kill in found) else 1)


def make_config(folder: Path) -> Config:
    """A random tiny model whose tokenizer knows the words of the shell tasks."""
    model = folder / "model"
    texts = [
        part
        for task in shell.tasks("train")[:256]
        for part in (task.prompt, *(file.content for file in task.files))
    ]
    model.mkdir()
    tokenizer = tiny.make_tokenizer(model, texts)
    tiny.make_model(model, tokenizer, layers=2, hidden=64, context_tokens=6144)
    return parse_config(
        {
            "run": {"name": "killed", "folder": str(folder)},
            "model": {"path": str(model), "context_tokens": 6144},
            "tasks": {
                "train": ["shell:train"],
                "validation": ["shell:validation"],
                "validation_limit": 2,
            },
            "rollout": {
                "trajectories_per_prompt": 2,
                "prompts_per_step": 2,
                "prompt_tokens": 5120,
                "response_tokens": 512,
            },
            "agent": {"max_turns": 2, "turn_tokens": 24, "command_seconds": 10},
            "train": {
                "steps": 100_000,  # more than are done
                "save_every": 1,
                "validate_first": False,
                "export": False,
            },
            "logging": {"wandb": True},
            "hardware": {
                "platform": "cpu",
                "dtype": "float32",
                "micro_batch": 4,
                "engine_cache_gib": 1,
            },
        }
    )


def trainer(run_dir: Path) -> psutil.Process:
    """The living trainer of this run. Raises LookupError."""
    for process in psutil.Process().children():
        with contextlib.suppress(psutil.NoSuchProcess):
            words = process.cmdline()
            if str(run_dir / "config.toml") in words and any(
                "entrypoints/train" in w for w in words
            ):
                return process
    raise LookupError(f"no trainer of {run_dir}")


def processes() -> set[int]:
    """All living processes below this one."""
    found = set()
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill the trainer of a real run.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    main(given.kills, given.seed)
