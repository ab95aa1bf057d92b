"""The SDK's tools, acting in the sandbox: `terminal`, `file_editor`; `finish` is the SDK's own.

Names and parameters are those that OpenHands models know. Differences: each `terminal` call is a
fresh shell in the task's folder.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from openhands.sdk import Action, Observation, Tool, ToolDefinition, register_tool
from openhands.sdk.tool import ToolExecutor
from pydantic import Field

from skiff.agents.openhands.editor import Edit
from skiff.agents.openhands.session import Session, find_session
from skiff.agents.tokens import clip


class SandboxTerminalAction(Action):
    command: str = Field(description="A bash command.")


class SandboxEditorAction(Action):
    command: Literal["view", "create", "str_replace", "insert", "undo_edit"] = Field(
        description="What to do."
    )
    path: str = Field(description="Absolute path of a file, or for view also of a folder.")
    file_text: str | None = Field(default=None, description="create: the content.")
    old_str: str | None = Field(
        default=None, description="str_replace: the text to replace; it must occur exactly once."
    )
    new_str: str | None = Field(default=None, description="str_replace, insert: the new text.")
    insert_line: int | None = Field(
        default=None, description="insert: the line after which new_str goes, 0 for the top."
    )
    view_range: list[int] | None = Field(
        default=None, description="view: first and last line, -1 for the end."
    )


class SandboxObservation(Observation):
    """What the agent sees of an action."""


class _Terminal(ToolExecutor[SandboxTerminalAction, SandboxObservation]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, action: SandboxTerminalAction, conversation: Any = None) -> Any:
        text = self._session.call(self._run(action.command))
        return SandboxObservation.from_text(text)

    async def _run(self, command: str) -> str:
        episode = self._session.episode
        turn = episode.turn
        turn.action = command
        result = await episode.run(command)
        ending = "timed out" if result.exit_code is None else f"exit code {result.exit_code}"
        output = clip(result.text, episode.agent.observation_chars).rstrip()
        turn.exit_code = result.exit_code
        turn.observation = f"{output}\n[{ending}]".lstrip()
        return turn.observation


class _Editor(ToolExecutor[SandboxEditorAction, SandboxObservation]):
    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, action: SandboxEditorAction, conversation: Any = None) -> Any:
        edit = Edit(**action.model_dump(include=set(SandboxEditorAction.model_fields)))
        text, failed = self._session.call(self._run(edit))
        return SandboxObservation.from_text(text, is_error=failed)

    async def _run(self, edit: Edit) -> tuple[str, bool]:
        turn = self._session.episode.turn
        turn.action = f"{edit.command} {edit.path}"
        text, failed = await self._session.editor.run(edit)
        turn.observation, turn.exit_code = text, int(failed)
        return text, failed


class SandboxTerminalTool(ToolDefinition[SandboxTerminalAction, SandboxObservation]):
    name: ClassVar[str] = "terminal"

    @classmethod
    def create(cls, conv_state: Any, *, session: str) -> Sequence[SandboxTerminalTool]:
        """`session` is the key of the session whose sandbox is used."""
        task = find_session(session).episode.task
        return [
            cls(
                description=f"Run a bash command in {task.workdir}, each in a fresh shell.",
                action_type=SandboxTerminalAction,
                observation_type=SandboxObservation,
                executor=_Terminal(find_session(session)),
            )
        ]


class SandboxEditorTool(ToolDefinition[SandboxEditorAction, SandboxObservation]):
    name: ClassVar[str] = "file_editor"

    @classmethod
    def create(cls, conv_state: Any, *, session: str) -> Sequence[SandboxEditorTool]:
        """`session` is the key of the session whose sandbox is used."""
        return [
            cls(
                description="View, create and edit text files.",
                action_type=SandboxEditorAction,
                observation_type=SandboxObservation,
                executor=_Editor(find_session(session)),
            )
        ]


def make_tools(session: str) -> list[Tool]:
    """The tool specifications of one session, as the SDK's agent takes them (plain JSON)."""
    return [
        Tool(name=tool.name, params={"session": session})
        for tool in (SandboxTerminalTool, SandboxEditorTool)
    ]


register_tool(SandboxTerminalTool.name, SandboxTerminalTool)
register_tool(SandboxEditorTool.name, SandboxEditorTool)
