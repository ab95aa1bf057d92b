"""The demo over several seeds -> benchmarks/demo.md: python benchmarks/demo.py [SEED ...]

Figures: validation solve rate of the warm start and of the last policy (64 tasks, sampled at
temperature 1), their ratio, wall time of the whole command, and the largest sum of resident memory
(shared pages counted once: PSS) of its process tree. Run it on a machine that does nothing else.
The run folders stay below runs/benchmark.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from skiff.report import summarise

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
BEGIN = "<!-- measured -->\n"


@dataclass(frozen=True)
class Result:
    """One run of the demo."""

    seed: int
    before: float
    after: float
    trajectories_per_minute: float
    seconds: float
    memory_gib: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("inf")


def main(seeds: list[int]) -> None:
    results = []
    for seed in seeds:
        results.append(run(seed, ROOT / "runs" / "benchmark"))
        print(row(results[-1]), flush=True)
    text = TABLE.read_text() if TABLE.exists() else "# The demo over seeds\n\n" + BEGIN
    TABLE.write_text(text.partition(BEGIN)[0] + BEGIN + "\n".join(table(results)) + "\n")


def run(seed: int, folder: Path) -> Result:
    """Run the demo with `seed` and measure it from outside."""
    command = [sys.executable, "-m", "skiff.cli", "run", "profiles/demo.toml"]
    command += ["--set", f"run.seed={seed}", "--set", f"run.folder={folder}/{seed}"]
    begun, peak = time.monotonic(), 0
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL)
    while process.poll() is None:
        peak = max(peak, memory(psutil.Process(process.pid)))
        time.sleep(2)
    seconds = time.monotonic() - begun
    if process.returncode != 0:
        sys.exit(f"the demo with seed {seed} ended with exit code {process.returncode}")
    run_dir = max((folder / str(seed)).iterdir())  # names end with the time
    found = summarise(run_dir)
    assert found.before is not None
    assert found.after is not None
    return Result(
        seed=seed,
        before=found.before.rate or 0.0,
        after=found.after.rate or 0.0,
        trajectories_per_minute=found.trajectories_per_minute or 0.0,
        seconds=seconds,
        memory_gib=peak / 2**30,
    )


def memory(root: psutil.Process) -> int:
    """Bytes of the process tree, shared pages divided among those that share them."""
    total = 0
    for process in (root, *root.children(recursive=True)):
        try:
            total += process.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return total


def table(results: list[Result]) -> list[str]:
    head = "| seed | warm start | trained | ratio | trajectories/min | minutes | peak GiB |"
    lines = [head, "|---|---|---|---|---|---|---|", *map(row, results)]
    ratios = [result.ratio for result in results]
    after = [result.after for result in results]
    lines += [
        "",
        f"Ratio: {min(ratios):.1f} to {max(ratios):.1f}, median {statistics.median(ratios):.1f}."
        f" Trained: {min(after):.1%} to {max(after):.1%}.",
    ]
    return lines


def row(result: Result) -> str:
    return (
        f"| {result.seed} | {result.before:.1%} | {result.after:.1%} | {result.ratio:.1f}"
        f" | {result.trajectories_per_minute:.0f} | {result.seconds / 60:.1f}"
        f" | {result.memory_gib:.1f} |"
    )


if __name__ == "__main__":
    main([int(seed) for seed in sys.argv[1:]] or [0, 1, 2])
