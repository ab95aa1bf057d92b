"""The demo over seeds -> benchmarks/demo.md: python benchmarks/demo.py [--sif FOLDER] [SEED ...]

With --sif each seed runs twice, from the clone and with both halves in their SIFs. Rows of the
table that were not measured anew stay.

Figures: validation solve rate of the warm start and of the last policy (64 tasks, sampled at
temperature 1), their ratio, wall time of the whole command, and the largest sum of resident memory
(shared pages counted once: PSS) of its process tree. Run it on a machine that does nothing else.
The run folders stay below runs/benchmark.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import psutil
from skiff.images.definitions import find_image
from skiff.report import summarise

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
BEGIN = "<!-- measured -->\n"


@dataclass(frozen=True)
class Result:
    """One run of the demo. `place`: "clone" or "SIF"."""

    seed: int
    place: str
    before: float
    after: float
    trajectories_per_minute: float
    seconds: float
    memory_gib: float

    @property
    def ratio(self) -> float:
        return self.after / self.before if self.before else float("inf")


def main(seeds: list[int], sif: Path | None) -> None:
    rows = read_rows()
    for seed in seeds:
        for place in ["clone"] if sif is None else ["clone", "SIF"]:
            result = run(seed, ROOT / "runs" / "benchmark", sif if place == "SIF" else None)
            rows[seed, place] = result
            print(row(result), flush=True)
    text = TABLE.read_text() if TABLE.exists() else "# The demo over seeds\n\n" + BEGIN
    TABLE.write_text(text.partition(BEGIN)[0] + BEGIN + "\n".join(table(rows)) + "\n")


def read_rows() -> dict[tuple[int, str], Result]:
    """The rows of the table as it stands."""
    rows = {}
    for line in TABLE.read_text().splitlines() if TABLE.exists() else []:
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("|") and cells[0].isdigit():
            seed, place, before, after, _, speed, minutes, memory_gib = cells
            rows[int(seed), place] = Result(
                seed=int(seed),
                place=place,
                before=float(before.rstrip("%")) / 100,
                after=float(after.rstrip("%")) / 100,
                trajectories_per_minute=float(speed),
                seconds=float(minutes) * 60,
                memory_gib=float(memory_gib),
            )
    return rows


def run(seed: int, folder: Path, sif: Path | None) -> Result:
    """Run the demo, from the SIFs in a folder if one is given, and measure it from outside."""
    command = [sys.executable, "-m", "skiff.cli", "run", "profiles/demo.toml"]
    command += ["--set", f"run.seed={seed}", "--set", f"run.folder={folder}/{seed}"]
    if sif is not None:
        for half, image in (("runtime", "runtime"), ("trainer", "trainer-cpu")):
            command += ["--set", f"images.{half}={sif / find_image(image).file_name()}"]
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
        place="clone" if sif is None else "SIF",
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


def table(rows: dict[tuple[int, str], Result]) -> list[str]:
    head = "| seed | from | warm start | trained | ratio | trajectories/min | minutes | peak GiB |"
    results = [rows[key] for key in sorted(rows)]
    lines = [head, "|---|---|---|---|---|---|---|---|", *map(row, results)]
    ratios = [result.ratio for result in results]
    after = [result.after for result in results]
    lines += [
        "",
        f"Ratio: {min(ratios):.1f} to {max(ratios):.1f}, median {statistics.median(ratios):.1f}."
        f" Trained: {min(after):.1%} to {max(after):.1%}.",
    ]
    for (seed, place), result in sorted(rows.items()):
        if place == "SIF":
            times = result.seconds / rows[seed, "clone"].seconds
            lines.append(f"Seed {seed}: from SIFs in {times:.2f} of the time from the clone.")
    return lines


def row(result: Result) -> str:
    return (
        f"| {result.seed} | {result.place} | {result.before:.1%} | {result.after:.1%}"
        f" | {result.ratio:.1f} | {result.trajectories_per_minute:.0f} | {result.seconds / 60:.1f}"
        f" | {result.memory_gib:.1f} |"
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("seed", type=int, nargs="*")
    parser.add_argument("--sif", type=Path, help="folder of the images")
    parsed = parser.parse_args()
    main(parsed.seed or [0, 1, 2], parsed.sif.absolute() if parsed.sif else None)
