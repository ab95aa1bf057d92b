"""view, create, str_replace, insert and undo_edit on text files of the sandbox.

Mistakes of the agent (no such file, text not unique) are answers, not exceptions. Not covered:
binary files, and undoing across sandboxes. A file is read and written whole.
"""

from __future__ import annotations

from dataclasses import dataclass
from shlex import quote

from skiff.agents.episode import Episode
from skiff.agents.tokens import clip
from skiff.sandbox.client import CommandResult, Sandbox

CONTEXT_LINES = 4  # shown around an edit


@dataclass(frozen=True)
class Edit:
    """One call; which of the optional fields are needed depends on `command`."""

    command: str
    path: str
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = None
    view_range: list[int] | None = None


class EditError(Exception):
    """A mistake of the agent; the text is for the agent."""


class Editor:
    """The editor of one trajectory; it remembers earlier contents for undo_edit."""

    def __init__(self, episode: Episode) -> None:
        self._episode = episode
        self._before: dict[str, list[str]] = {}

    async def run(self, edit: Edit) -> tuple[str, bool]:
        """The text for the agent, and whether it is an error. Raises InfraError."""
        commands = {
            "view": self._view,
            "create": self._create,
            "str_replace": self._replace,
            "insert": self._insert,
            "undo_edit": self._undo,
        }
        with self._episode.tool() as sandbox:
            try:
                if not edit.path.startswith("/"):
                    raise EditError(
                        f"{edit.path} is not absolute; did you mean"
                        f" {self._episode.task.workdir}/{edit.path}?"
                    )
                text = await commands[edit.command](sandbox, edit)
            except EditError as mistake:
                return str(mistake), True
            except OSError as error:  # of the path, not of the sandbox: that is an InfraError
                return f"{edit.command} {edit.path}: {error.strerror}", True
        return clip(text, self._episode.agent.observation_chars), False

    async def _view(self, sandbox: Sandbox, edit: Edit) -> str:
        path = quote(edit.path)
        hidden = quote(f"{edit.path.rstrip('/')}/.*")
        listing = await self._shell(
            sandbox, f"[ -d {path} ] && find {path} -maxdepth 2 ! -path {hidden} | sort"
        )
        if listing.exit_code == 0:
            return listing.text.rstrip()
        lines = (await self._read(sandbox, edit.path)).splitlines()
        first, last = _range(edit.view_range, len(lines))
        return _number(lines, first, last)

    async def _create(self, sandbox: Sandbox, edit: Edit) -> str:
        text = _need(edit.file_text, "file_text")
        there = await self._shell(sandbox, f"[ -e {quote(edit.path)} ]")
        if there.exit_code == 0:
            raise EditError(f"{edit.path} exists already; use str_replace or insert")
        # The SDK strips parameters, and with it the newline that ends a text file.
        await sandbox.write(edit.path, f"{text.rstrip('\n')}\n".encode())
        return f"{edit.path} created"

    async def _replace(self, sandbox: Sandbox, edit: Edit) -> str:
        old, new = _need(edit.old_str, "old_str"), edit.new_str or ""
        text = await self._read(sandbox, edit.path)
        count = text.count(old)
        if count != 1:
            raise EditError(f"old_str occurs {count} times in {edit.path}; it must occur once")
        line = text[: text.index(old)].count("\n")
        return await self._change(sandbox, edit.path, text, text.replace(old, new), line)

    async def _insert(self, sandbox: Sandbox, edit: Edit) -> str:
        new, line = _need(edit.new_str, "new_str"), edit.insert_line
        text = await self._read(sandbox, edit.path)
        lines = text.splitlines(keepends=True)
        if line is None or not 0 <= line <= len(lines):
            raise EditError(f"insert_line must be from 0 to {len(lines)}")
        if lines and not lines[-1].endswith("\n"):
            lines[-1] += "\n"
        changed = "".join([*lines[:line], f"{new.rstrip('\n')}\n", *lines[line:]])
        return await self._change(sandbox, edit.path, text, changed, line)

    async def _undo(self, sandbox: Sandbox, edit: Edit) -> str:
        before = self._before.get(edit.path)
        if not before:
            raise EditError(f"there is no edit of {edit.path} to undo")
        await self._write(sandbox, edit.path, before[-1])
        before.pop()
        return f"the last edit of {edit.path} is undone"

    async def _change(self, sandbox: Sandbox, path: str, old: str, new: str, line: int) -> str:
        """Write `new`, remember `old`; returns the lines around the changed one (from 0)."""
        await self._write(sandbox, path, new)
        self._before.setdefault(path, []).append(old)
        lines = new.splitlines()
        first = max(1, line + 1 - CONTEXT_LINES)
        last = min(len(lines), line + 1 + CONTEXT_LINES)
        return f"{path} edited:\n{_number(lines, first, last)}"

    async def _read(self, sandbox: Sandbox, path: str) -> str:
        try:
            return (await sandbox.read(path)).decode()
        except UnicodeDecodeError:
            raise EditError(f"{path} is not a text file") from None

    async def _write(self, sandbox: Sandbox, path: str, text: str) -> None:
        """Replace the content and keep the mode; a file that is gone meanwhile is made anew."""
        mode = await self._shell(sandbox, f"stat -c %a {quote(path)} || echo 644")
        await sandbox.write(path, text.encode(), mode=int(mode.stdout, 8))

    async def _shell(self, sandbox: Sandbox, command: str) -> CommandResult:
        return await sandbox.run(command, timeout=self._episode.agent.command_seconds)


def _need(value: str | None, name: str) -> str:
    if not value:
        raise EditError(f"{name} is missing")
    return value


def _range(asked: list[int] | None, count: int) -> tuple[int, int]:
    """First and last line to show, from 1; raises EditError for a range outside the file."""
    if not asked:
        return 1, count
    first, last = (asked[0], asked[1] if len(asked) > 1 else -1)
    last = count if last == -1 else min(last, count)
    if not 1 <= first <= max(last, 1):
        raise EditError(f"view_range must lie within 1 and {count}")
    return first, last


def _number(lines: list[str], first: int, last: int) -> str:
    return "\n".join(f"{i:6}\t{lines[i - 1]}" for i in range(first, last + 1))
