"""kill -9 of the trainer at random points of a real run -> trainer_killed.md:
python benchmarks/drills/trainer_killed.py [--kills 20] [--seed 0] [--slurm] [--sif FOLDER]

A random tiny model on the CPU saves at each step. In each attempt the trainer gets SIGKILL at a
random time within three steps after its first trajectory. The run is then resumed; with --slurm
(-> trainer_killed_slurm.md) it is a heterogeneous job, which must be requeued by itself. For each
kill the table says which step was the last one done, which checkpoint the next attempt went on
from, and what of torn or damaged ones it has passed over. A step that was done twice must have
drawn the same tasks: the position in the data is the checkpoint's. All attempts must be one run of
W&B, and the optimiser must have counted all steps. Then the trainer has to save and end: by a
request, on Slurm by a time limit, twice. At last, on Slurm, a bare scancel must leave nothing: no
process, container, socket or lease. Ends with 1 where more than a step was lost or anything else is
wrong.

Needs podman, with --slurm also Slurm's programs and munge; with --sif both halves are run from
their images. An attempt takes about a minute on two cores.
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
from attempts import SIGNAL_SECONDS, Attempts, Here, OnSlurm
from skiff import events
from skiff.config import Config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
from skiff.train import manifest, resume
from tiny_run import circumstances, cluster, make_config, print_logs, slurm_sections, tree_of

TABLE = Path(__file__)
STEPS_TO_A_KILL = 3
SAVES = 2  # time limits on Slurm, one after the other
FIRST_STEP_SECONDS = 10.0  # until one was measured
START_SECONDS = 600.0


@dataclass(frozen=True)
class Kill:
    """One kill and the attempt after it.

    after    seconds from the first trajectory to the kill
    done     newest step whose metrics were written
    resumed  step of the checkpoint that the next attempt went on from
    passed   checkpoints that it has passed over, and why
    ended    how the attempt stood after it
    """

    after: float
    ended: str
    done: int
    resumed: int
    passed: str

    @property
    def lost(self) -> int:
        return max(0, self.done - self.resumed)

    def row(self, number: int) -> str:
        steps = (self.done, self.resumed, self.lost)
        cells = (number, f"{self.after:.1f}", self.ended, *steps, self.passed)
        return "| " + " | ".join(map(str, cells)) + " |"


@dataclass
class Drill:
    """A run, and what is done to it."""

    config: Config
    run_dir: Path
    attempts: Attempts
    chance: random.Random

    def kill(self) -> Kill:
        """One attempt that is killed."""
        after = self.chance.uniform(0, STEPS_TO_A_KILL * self.step_seconds())

        def act(since_first: float) -> None:
            if since_first >= after:
                with contextlib.suppress(LookupError, psutil.NoSuchProcess):
                    trainer(self.run_dir).kill()

        ended = self.attempt(act)
        return Kill(after, ended, self.done(), *self.go_on())

    def save(self) -> str:
        """One attempt that has to save and end; how it stands then."""
        return self.attempt(lambda _: self.attempts.ask_to_save())

    def cancel(self, attempts: OnSlurm, step: int) -> str:
        """One attempt that is cancelled when it has done a step after `step`; how it stands
        then."""

        def act(_: float) -> None:
            if self.done() > step:
                attempts.cancel()

        return self.attempt(act)

    def attempt(self, act: Callable[[float], None]) -> str:
        """One attempt to its end, and how it stands then. `act` is called often with the seconds
        since its first trajectory."""
        begun = time.time()
        first: list[float] = []

        def watch() -> None:
            now = time.time()
            if not first and any(event["time"] > begun for event in self.read("trajectory")):
                first.append(now)
            if first:
                act(now - first[0])
            elif now > begun + START_SECONDS:
                self.fail(f"no trajectory within {START_SECONDS:g} s")

        ended = self.attempts.next(watch)
        if not first:
            self.fail("it has ended before its first trajectory")
        return ended

    def fail(self, what: str) -> None:
        print_logs(self.run_dir)
        sys.exit(f"error: {what}")

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


def main(kills: int, seed: int, *, slurm: bool, images: Path | None) -> None:
    ensure_sandbox_image()
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="skiff-drill-")))
        if slurm:
            stack.enter_context(cluster(scratch))
        config = drill_config(scratch, images, slurm=slurm, requeues=kills + SAVES)
        run_dir = run_folder.make(config)
        attempts = OnSlurm(config, run_dir) if slurm else Here(config, run_dir)
        drill = Drill(config, run_dir, attempts, random.Random(seed))
        begun = time.monotonic()
        found = []
        for number in range(1, kills + 1):
            found.append(drill.kill())
            print(found[-1].row(number), flush=True)
        before = drill.done()
        ended = " and ".join([drill.save() for _ in range(SAVES if slurm else 1)])
        saved, last = resume.newest(run_dir), drill.done()
        wrong = manifest.fault(resume.checkpoint(run_dir / "ckpt", saved))
        updates = drill.updates(saved)
        end = [f"Asked to save and end after step {before} ({ended}): the last step is {last}, the"]
        end += [f"checkpoint of step {saved} is {wrong or 'whole'}."]
        good = not wrong and saved == last == updates > before
        if isinstance(attempts, OnSlurm):
            cancelled = drill.cancel(attempts, last)
            end += [
                f"The job went on to step {drill.done()}; after a bare scancel it is {cancelled},"
            ]
            end += ["and no process, container, socket or lease of it is left."]
            good &= cancelled == "cancelled"
        minutes = (time.monotonic() - begun) / 60
        others = drill.other_tasks()
        starts, runs = drill.wandb_runs()
        lines = [
            circumstances(images, slurm=slurm),
            "",
            f"Seed {seed}, {minutes:.0f} minutes, {before} steps; a step takes"
            f" {drill.step_seconds():.1f} s.",
            "",
            "| kill | s after the first trajectory | the attempt | step done | goes on from |"
            " steps lost | passed over |",
            "|---|---|---|---|---|---|---|",
            *(kill.row(number) for number, kill in enumerate(found, 1)),
            "",
            f"Steps lost: at most {max((kill.lost for kill in found), default=0)}. Steps that drew"
            f" other tasks when they were done again: {others or 'none'}. {' '.join(end)} The"
            f" optimiser has counted {updates} updates. To W&B {starts} starts are {runs} run.",
        ]
    print("\n".join(lines))
    table = TABLE.with_name(f"{TABLE.stem}{'_slurm' if slurm else ''}.md")
    table.write_text("# The trainer is killed\n\n" + "\n".join(lines) + "\n")
    good &= not others and runs == 1 and all(kill.lost <= 1 for kill in found)
    sys.exit(int(not good))


def drill_config(folder: Path, images: Path | None, *, slurm: bool, requeues: int) -> Config:
    """More steps than are done."""
    sections: dict[str, dict[str, Any]] = {}
    if slurm:
        sections = slurm_sections(requeues=requeues, signal_seconds=SIGNAL_SECONDS)
    sections |= {"train": {"steps": 100_000}, "logging": {"wandb": True}}
    return make_config(folder, images, **sections)


def trainer(run_dir: Path) -> psutil.Process:
    """The living trainer of this run, which may be in a container. Raises LookupError."""
    for process in tree_of(run_dir):
        with contextlib.suppress(psutil.NoSuchProcess):
            if any(word.endswith("entrypoints/train") for word in process.cmdline()):
                return process
    raise LookupError(f"no trainer of {run_dir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Kill the trainer of a real run.")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--slurm", action="store_true", help="as a job on a Slurm of this host")
    parser.add_argument("--sif", type=Path, metavar="FOLDER", help="of the SIFs; else the clone")
    given = parser.parse_args()
    main(given.kills, given.seed, slurm=given.slurm, images=given.sif)
