"""Live progress of a run in the terminal, read from its events.jsonl.

On a terminal one line is redrawn; elsewhere (CI, a log file) each finished phase and step is one
printed line.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.status import Status

from skiff import events

PHASES = {
    "runtime": "runtime server is up",
    "tasks": "tasks are read",
    "warm_start": "warm start is done",
    "export": "policy is exported",
    "image": "sandbox image is ready",
}


class Watch:
    """Call it often; it shows what was appended since. A context manager."""

    def __init__(self, run_dir: Path, steps: int, console: Console) -> None:
        self._events = events.Tail(run_dir / events.FILE, skip_old=True)
        self._steps = steps
        self._console = console
        self._status = Status("starting", console=console)
        self._done = {"train": 0, "validation": 0}

    def __enter__(self) -> Watch:
        if self._console.is_terminal:
            self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def __call__(self) -> None:
        """Show the new events."""
        for event in self._events.new():
            self._show(event)

    def _show(self, event: dict[str, Any]) -> None:
        kind = event["kind"]
        if kind == "progress":
            self._status.update(f"{escape(event['what'])} {event['share']:.0%}")
        elif kind == "phase":
            words = PHASES.get(event["name"], event["name"])
            self._print(f"[dim]{event['seconds']:7.1f} s[/dim]  {words}")
        elif kind == "trajectory":
            self._done[event["split"]] += 1
            self._status.update(
                f"step {event['step']} of {self._steps}: {self._done['train']} trajectories,"
                f" {self._done['validation']} for validation"
            )
        elif kind == "step":
            self._print(self._step(event))
        elif kind == "validation" and event["solve_rate"] is not None:
            masked = f", {event['masked']} masked" if event["masked"] else ""
            self._print(
                f"[bold]validation[/bold] at step {event['step']}: {event['solved']} of"
                f" {event['graded']} solved ({event['solve_rate']:.0%}{masked})"
            )
        elif kind == "checkpoint":
            self._print(f"[dim]checkpoint of step {event['step']}[/dim]")
        elif kind in ("alert", "checkpoint_skipped", "retry"):
            self._print(f"[yellow]{escape(event['what'])}[/yellow]")
        elif kind == "error":
            self._print(f"[red]{escape(event['what'])}[/red]")

    def _step(self, event: dict[str, Any]) -> str:
        metrics, seconds = event["metrics"], event["seconds"]
        masked = f"  masked {metrics['masked']:.0f}" if metrics.get("masked") else ""
        return (
            f"step {event['step']:>4}/{self._steps}  reward {metrics.get('reward_mean', 0.0):.3f}"
            f"  {seconds['step']:.1f} s (rollout {seconds.get('gen', 0.0):.1f},"
            f" update {seconds.get('update_actor', 0.0):.1f}){masked}"
        )

    def _print(self, text: str) -> None:
        self._console.print(text, highlight=False)
