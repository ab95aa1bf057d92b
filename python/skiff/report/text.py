"""Figures as short text, the same in the terminal and in the HTML report."""

from __future__ import annotations

from skiff.report.records import ValidationRecord
from skiff.report.summary import wilson

NONE = "–"

PHASES = {
    "gen": "rollouts",
    "reward": "reward",
    "old_log_prob": "old log-probs",
    "ref": "reference policy",
    "values": "critic values",
    "adv": "advantages",
    "update_actor": "actor update",
    "update_critic": "critic update",
    "update_weights": "weight sync",
    "save_checkpoint": "checkpoint",
    "testing": "validation",
    "other": "other",
}


def phase_name(key: str) -> str:
    """A reader's name of a timer; unknown timers keep their own."""
    return PHASES.get(key, key.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits, thousands separated: 0.0123, 4.56, 1,230."""
    if value is None:
        return NONE
    if abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def percent(share: float | None) -> str:
    """0.123 -> 12 %; shares below 10 % keep one decimal."""
    if share is None:
        return NONE
    return f"{100 * share:.1f} %" if 0 < share < 0.1 else f"{100 * share:.0f} %"


def duration(seconds: float | None) -> str:
    """0 s, 0.4 s, 45 s, 3 min 20 s, 2 h 05 min."""
    if seconds is None:
        return NONE
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def solve_rate(validation: ValidationRecord | None) -> str:
    """19 % (12 of 64, 95 % interval 11 % to 30 %)."""
    if validation is None or validation.rate is None:
        return NONE
    low, high = wilson(validation.solved, validation.graded)
    return (
        f"{percent(validation.rate)} ({number(validation.solved)} of {validation.graded}, "
        f"95 % interval {percent(low)} to {percent(high)})"
    )
