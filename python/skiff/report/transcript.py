"""A stored trajectory as a readable transcript: prompt, turns, patch, verdict."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError
from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.syntax import Syntax
from rich.text import Text

from skiff.errors import SkiffError
from skiff.report.text import duration

FOLDER = "trajectories"


class Stored(BaseModel):
    """Fields of the writer that nobody reads here are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class StoredTurn(Stored):
    """One action and its observation; `text` is all that the policy said."""

    text: str = ""
    action: str = ""
    observation: str = ""
    exit_code: int | None = None
    tokens: int = 0
    seconds: float = 0.0


class StoredTrajectory(Stored):
    """A file of `trajectories/`. `reward` None = masked."""

    task_id: str = ""
    step: int = 0
    split: str = ""
    prompt_text: str = ""
    turns: tuple[StoredTurn, ...] = ()
    stop: str = ""
    stop_detail: str = ""
    patch: str = ""
    reward: float | None = None
    grade_output: str = ""
    seconds: dict[str, float] = {}

    @property
    def verdict(self) -> str:
        """solved, not solved, or masked, with the reward."""
        if self.reward is None:
            return "masked (not graded)"
        word = "solved" if self.reward >= 1 else "not solved"
        return f"{word} (reward {self.reward:g})"

    @property
    def title(self) -> str:
        """Task, where in the run it was sampled, and its outcome."""
        parts = [self.task_id, self.split, f"step {self.step}", self.verdict, f"stop: {self.stop}"]
        return " · ".join(part for part in parts if part)


def load_trajectory(path: Path) -> StoredTrajectory:
    """Raises SkiffError when `path` cannot be read or is no trajectory."""
    try:
        return StoredTrajectory.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SkiffError(
            f"cannot be read: {error.strerror}",
            where=str(path),
            remedy="name a file below trajectories/ of a run folder, or the run folder itself",
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise SkiffError(
            f"is no stored trajectory: {field}: {first['msg']}",
            where=str(path),
            remedy="name a file below trajectories/ of a run folder, or the run folder itself",
        ) from error


def find_trajectory(run_dir: Path, index: int = -1) -> Path:
    """The stored trajectory number `index` in order of step and task; negative from the end.

    Raises SkiffError when the run kept none, or not that many.
    """
    files = sorted((run_dir / FOLDER).glob("*/*.json"))
    if not files:
        raise SkiffError(
            "holds no stored trajectories",
            where=str(run_dir / FOLDER),
            remedy="set logging.trajectories_per_step above 0, or wait for the first step",
        )
    if not -len(files) <= index < len(files):
        raise SkiffError(
            f"no trajectory number {index}: {len(files)} are stored",
            where=str(run_dir / FOLDER),
            remedy=f"choose 0 to {len(files) - 1}, or -1 for the last",
        )
    return files[index]


def show_trajectory(path: Path, index: int = -1) -> RenderableType:
    """`path` is a trajectory file, or a run folder of which number `index` is shown.

    Raises SkiffError as `find_trajectory` and `load_trajectory` do.
    """
    file = find_trajectory(path, index) if path.is_dir() else path
    return render(load_trajectory(file))


def render(trajectory: StoredTrajectory) -> Group:
    """The transcript for a terminal, from top to bottom."""
    parts: list[RenderableType] = [
        Rule(Text(trajectory.title, style="bold"), align="left"),
        Text(trajectory.prompt_text.strip()),
    ]
    for number, turn in enumerate(trajectory.turns, start=1):
        parts.append(Rule(Text(turn_title(number, turn), style="cyan"), align="left", style="dim"))
        parts.append(Text(turn.text.strip() or turn.action))
        if turn.observation or turn.exit_code is not None:
            parts.append(Padding(observation(turn), (0, 0, 0, 2)))
    if trajectory.patch.strip():
        parts.append(Rule(Text("patch", style="cyan"), align="left", style="dim"))
        parts.append(Syntax(trajectory.patch, "diff", background_color="default"))
    if trajectory.grade_output.strip():
        parts.append(Rule(Text("grading", style="cyan"), align="left", style="dim"))
        parts.append(Text(trajectory.grade_output.strip()))
    colour = {None: "yellow", True: "green", False: "red"}[
        None if trajectory.reward is None else trajectory.reward >= 1
    ]
    detail = f": {trajectory.stop_detail}" if trajectory.stop_detail else ""
    parts.append(Rule(Text(f"{trajectory.verdict}{detail}", style=f"bold {colour}"), align="left"))
    return Group(*parts)


def turn_title(number: int, turn: StoredTurn) -> str:
    """turn 2 · 34 tokens · 0.4 s."""
    return f"turn {number} · {turn.tokens} tokens · {duration(turn.seconds)}"


def observation(turn: StoredTurn) -> Text:
    """Exit code (when the action was a command) and what came back."""
    code = "" if turn.exit_code is None else f"exit {turn.exit_code}\n"
    return Text(code, style="bold dim").append(turn.observation.rstrip(), style="dim")
