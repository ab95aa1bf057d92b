"""Where one attempt of a run has its own in the run folder. Nothing is made here."""

from __future__ import annotations

from pathlib import Path


def attempt_folder(run_dir: Path, attempt: int) -> Path:
    """What the attempt was started with: verl's overrides, the jobs' scripts and ids."""
    return run_dir / "attempts" / f"{attempt:02d}"


def meeting_folder(run_dir: Path, attempt: int) -> Path:
    """Where its halves, and the nodes of each, find each other."""
    return run_dir / "rendezvous" / f"{attempt:02d}"
