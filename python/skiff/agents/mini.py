"""The `mini` agent: one shell command a turn, in a bash block; `submit` ends.

Each command gets a fresh shell in the task's folder. Not covered: several blocks in one answer
(corrected, it counts as a turn) and interactive programs.
"""

from __future__ import annotations

import re

from skiff.agents.episode import Episode, Stop
from skiff.agents.prompts import MINI_CORRECTION, MINI_SYSTEM
from skiff.agents.tokens import clip
from skiff.agents.trajectory import StopReason
from skiff.sandbox.client import CommandResult

SUBMIT = "submit"
REPEATS = 4  # so many equal steps in a row are a loop

_BLOCK = re.compile(r"```bash\n(.*?)\n?```", re.DOTALL)


async def run(episode: Episode) -> Stop:
    """Act until the agent submits, loops or has used its turns.

    Raises ContextFullError, InfraError, and TaskError when the first prompt is too long.
    """
    episode.begin(
        [
            {"role": "system", "content": MINI_SYSTEM},
            {"role": "user", "content": episode.task.prompt},
        ]
    )
    last, repeats = ("", ""), 0
    for turn in range(1, episode.agent.max_turns + 1):
        text = await episode.generate()
        command = parse_command(text)
        if command == SUBMIT:
            episode.turn.action = SUBMIT
            return Stop(StopReason.FINISHED)
        observation = await _step(episode, command)
        step = (command or text, observation)
        repeats = repeats + 1 if step == last else 1
        if repeats == REPEATS:
            return Stop(StopReason.STUCK, f"the same step {REPEATS} times in a row")
        last = step
        if turn < episode.agent.max_turns:
            episode.observe(observation)
    return Stop(StopReason.ITERATIONS)


def parse_command(text: str) -> str | None:
    """The command of the one bash block behind the reasoning; None when there is not exactly one,
    or it is empty."""
    blocks = _BLOCK.findall(text.rpartition("</think>")[2])
    return blocks[0].strip() or None if len(blocks) == 1 else None


def render_command(command: str) -> str:
    """The answer that `parse_command` reads as `command`."""
    return f"```bash\n{command}\n```"


async def _step(episode: Episode, command: str | None) -> str:
    """Run the command, if there is one; returns what the agent sees of it."""
    turn = episode.turn
    if command is None:
        turn.observation = MINI_CORRECTION
    else:
        result = await episode.run(command)
        turn.action, turn.exit_code = command, result.exit_code
        turn.observation = _show(result, episode.agent.observation_chars)
    return turn.observation


def _show(result: CommandResult, limit: int) -> str:
    head = "timeout" if result.exit_code is None else f"exit {result.exit_code}"
    return f"{head}\n{clip(result.text, limit)}".rstrip()
