"""Whole trainings on a real Slurm of this host, with the real halves -> slurm_training.md:
python benchmarks/drills/slurm_training.py [--sif FOLDER] [het two-jobs attach two-nodes]

A random tiny model takes one step on the CPU: in a heterogeneous job, in two jobs, with a server of
another run, and with a trainer of two nodes (one Ray over both). For each the table says the jobs'
states and the seconds from submission to end. With --sif both halves are run from their images.
Ends with 1 where a run has not made its step, or has left a process or a container behind.

Needs Slurm's programs, munge and podman. A run takes minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from skiff import events
from skiff.config import Config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
from skiff.launch.slurm import scancel
from skiff.launch.status import jobs_of
from skiff.launch.submit import cancel, submit
from skiff.sandbox.client import KEY_FILE_VARIABLE
from tiny_run import (
    circumstances,
    cluster,
    containers_of,
    make_config,
    print_logs,
    processes_of,
    slurm_sections,
    until,
)

TABLE = Path(__file__).with_suffix(".md")


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("shapes", nargs="*", metavar="SHAPE", help=", ".join(SHAPES))
    parser.add_argument("--sif", type=Path, metavar="FOLDER", help="of the SIFs; else the clone")
    given = parser.parse_args()
    ensure_sandbox_image()
    rows, failed = [], False
    with tempfile.TemporaryDirectory(prefix="skiff-slurm-") as name, cluster(Path(name)):
        for shape in given.shapes or SHAPES:
            found = SHAPES[shape](Path(name), given.sif)
            rows.append(f"| {shape} | " + " | ".join(found) + " |")
            print(rows[-1], flush=True)
            failed |= "**" in rows[-1]
    told = circumstances(given.sif, slurm=True)
    head = [told, "", "| shape | jobs | s | steps | left behind |", "|---|---|---:|---:|---|"]
    TABLE.write_text("# One step on Slurm\n\n" + "\n".join([*head, *rows]) + "\n")
    sys.exit(int(failed))


def profile(folder: Path, images: Path | None, **changed: dict[str, Any]) -> Config:
    """One small step."""
    changed = slurm_sections() | {"tasks": {"train_limit": 16}} | changed
    return make_config(folder, images, **changed)


def het(folder: Path, images: Path | None) -> list[str]:
    return follow(profile(folder, images))


def two_jobs(folder: Path, images: Path | None) -> list[str]:
    return follow(profile(folder, images, **slurm_sections(mode="two-jobs")))


def attach(folder: Path, images: Path | None) -> list[str]:
    config = profile(folder, images, run={"name": "served"})
    served = run_folder.make(config)
    submit(config, served, runtime_only=True)
    try:
        meeting = served / "rendezvous" / "01"
        [place] = until(lambda: list(meeting.glob("runtime-*.json")))
        os.environ[KEY_FILE_VARIABLE] = str(served / "rendezvous" / "key")
        url = json.loads(place.read_text())["url"]
        return follow(profile(folder, images, runtime={"url": url}))
    finally:
        cancel(served)
        until(lambda: all(job.ended for _, job in jobs_of(served)))


def two_nodes(folder: Path, images: Path | None) -> list[str]:
    return follow(profile(folder, images, hardware={"nodes": 2, "micro_batch": 2}))


SHAPES: dict[str, Callable[[Path, Path | None], list[str]]] = {
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
    left = [process.name() for process in processes_of(run_dir)] + containers_of(run_dir)
    if any(job.exit for _, job in jobs) or steps != [1]:
        states = f"**{states}**"
        print_logs(run_dir)
    return [states, f"{seconds:.0f}", str(len(steps)), f"**{left}**" if left else "nothing"]


if __name__ == "__main__":
    main()
