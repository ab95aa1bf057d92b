"""`skiff run` and `skiff resume`: from a profile to a run folder with a report in it."""

from __future__ import annotations

import time
from pathlib import Path

from rich.console import Console

from skiff import events
from skiff.config import Config
from skiff.errors import SkiffError
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import local, run_folder
from skiff.launch.local import INTERRUPTED
from skiff.launch.submit import check_ended, submit_again, was_submitted
from skiff.launch.sync import synced
from skiff.launch.watch import Watch
from skiff.report import summarise, summary_table, write_report
from skiff.train.inputs import check_inputs, check_places

CRASHED = 1


def run(config: Config, console: Console) -> int:
    """Make a run folder and run both halves in it; returns the exit code.

    Raises SkiffError; what the profile names and is not there, before anything is made or started.
    """
    check_inputs(config)
    run_dir = run_folder.make(config)
    console.print(f"run folder: {run_dir}")
    return _attempt(config, run_dir, console)


def resume(run_dir: Path, console: Console, *, local: bool = False) -> int:
    """Go on with a run from its newest whole checkpoint; returns the exit code.

    What was submitted is submitted again, unless `local`. Raises SkiffError.
    """
    run_dir = run_dir.absolute()
    config = run_folder.read_config(run_dir)
    if was_submitted(run_dir):
        if not local:
            submit_again(run_dir, config, console)
            return 0
        check_ended(run_dir)
    check_places(config)
    return _attempt(config, run_dir, console)


def _attempt(config: Config, run_dir: Path, console: Console) -> int:
    with run_folder.lock(run_dir), synced(config, run_dir):
        code = _run_halves(config, run_dir, console)
    console.print(summary_table(summarise(run_dir)))
    console.print(f"report: {run_dir / 'report.html'}\na trajectory: skiff show {run_dir}")
    return code


def _run_halves(config: Config, run_dir: Path, console: Console) -> int:
    number = run_folder.new_attempt(run_dir)
    code, reason = CRASHED, "crashed"
    try:
        with Watch(run_dir, config.train.steps, console) as watch:
            _make_image(config, run_dir)
            local.run_attempt(config, run_dir, number, watch=watch)
        code, reason = 0, "done"
    except KeyboardInterrupt:
        code, reason = INTERRUPTED, "interrupted"
        console.print(f"interrupted; `skiff resume {run_dir}` goes on from the last checkpoint")
    except SkiffError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        finish(run_dir, number, code, reason, console)
    return code


def finish(run_dir: Path, attempt: int, code: int, reason: str, console: Console) -> None:
    """Record how an attempt ended, and make the report."""
    try:
        events.emit(run_dir, "finished", exit_code=code, reason=reason, attempt=attempt)
        write_report(run_dir)
    except OSError as error:  # must not hide why the run ended
        console.print(f"no report: {error}", markup=False)


def _make_image(config: Config, run_dir: Path) -> None:
    """The base image of shell and package tasks, where this machine serves the sandboxes."""
    if config.runtime.url is not None:
        return
    begun = time.monotonic()
    if ensure_sandbox_image():
        seconds = round(time.monotonic() - begun, 1)
        events.emit(run_dir, "phase", name="image", seconds=seconds)
