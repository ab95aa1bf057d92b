"""`skiff run` and `skiff resume`: from a profile to a run folder with a report in it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from skiff import events
from skiff.config import Config, load_run_config
from skiff.errors import SkiffError
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import local, run_folder
from skiff.launch.watch import Watch
from skiff.report import summarise, summary_table, write_report

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def run(config: Config, console: Console) -> int:
    """Make a run folder and run both halves in it; returns the exit code. Raises SkiffError."""
    run_dir = run_folder.make(config)
    console.print(f"run folder: {run_dir}")
    return _attempt(config, run_dir, console)


def resume(run_dir: Path, console: Console) -> int:
    """Go on with a run from its newest whole checkpoint; returns the exit code."""
    run_dir = run_dir.absolute()
    config = load_run_config(run_dir / "config.toml")
    return _attempt(config, run_dir, console)


def _attempt(config: Config, run_dir: Path, console: Console) -> int:
    number = run_folder.new_attempt(run_dir)
    code, reason = 0, "done"
    try:
        with Watch(run_dir, config.train.steps, console) as watch:
            _make_image(config, run_dir)
            local.run_attempt(config, run_dir, number, watch=watch)
    except KeyboardInterrupt:
        code, reason = INTERRUPTED, "interrupted"
        console.print(f"interrupted; `skiff resume {run_dir}` goes on from the last checkpoint")
    except SkiffError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        events.emit(run_dir, "finished", exit_code=code, reason=reason, attempt=number)
        report = write_report(run_dir)
    console.print(summary_table(summarise(run_dir)))
    console.print(f"report: {report}\na trajectory: skiff show {run_dir}")
    return code


def _make_image(config: Config, run_dir: Path) -> None:
    """The base image of shell and package tasks, where this machine serves the sandboxes."""
    if config.runtime.url is not None:
        return
    begun = time.monotonic()
    if ensure_sandbox_image():
        seconds = round(time.monotonic() - begun, 1)
        events.emit(run_dir, "phase", name="image", seconds=seconds)
