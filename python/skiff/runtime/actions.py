"""OpenHands V0 actions, carried out in a container: run, read, write and edit.

V0 keeps one terminal per sandbox. Here each action gets a fresh shell, to which the folder and the
exported variables of the last one are handed on by a file in the sandbox (STATE). Not handed on:
shell functions, aliases, options, umask, variables that were not exported, and the state of a
command that was killed, that replaced its shell (`exec`) or set its own EXIT trap. A command that
passes its time limit is ended, so there is none to send input to. Background jobs live on.

Mistakes of the agent (no such file, text not unique) are ErrorObservations, or `ERROR:` texts of
the editor, as in V0; only a failure of the machinery raises (InfraError). Not covered: browsing,
IPython, MCP, undo_edit, images and other binary files.
"""

from __future__ import annotations

import asyncio
import difflib
import posixpath
import secrets
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from io import BytesIO
from shlex import quote
from typing import Any

from pydantic import BaseModel, Field, ValidationError

from skiff.runtime.backend import CommandOutput, Container
from skiff.runtime.reading import content
from skiff.runtime.sandbox_messages import Command, PathText
from skiff.runtime.shell import COMMAND_BYTES

STATE = "/tmp/.skiff-shell"
RUN_SECONDS = 120.0  # V0's default
FILE_SECONDS = 30.0
CONTEXT_LINES = 4  # shown around an edit

# After the command it prints $skiff_mark and, with NULs between them: folder, user, host, python.
# `export -p` quotes for the shell that prints it; PWD is among the variables.
_SHELL = f"""
exec 2>&1
skiff_end() {{
    skiff_code=$?
    export PWD
    export -p >{STATE}.new && mv -f {STATE}.new {STATE}
    read -r skiff_host </proc/sys/kernel/hostname
    printf '%s%s\\0%s\\0%s\\0' "$skiff_mark" "$PWD" "${{USER:-$(id -un)}}" "$skiff_host"
    command -v python || command -v python3
    exit "$skiff_code"
}}
if [ -f {STATE} ]; then . {STATE}; cd -- "$PWD" || cd -- "$skiff_workdir"; fi
trap 'skiff_end 2>/dev/null' EXIT
eval "$skiff_command"
"""


class Action(BaseModel):
    """A V0 action as its client sends it. `timeout` in seconds; `args` depends on `action`."""

    action: str
    args: dict[str, Any] = {}
    timeout: float | None = Field(None, gt=0, le=86400)


class Observation(BaseModel):
    """V0's answer to an action; `extras` depends on `observation`."""

    observation: str
    content: str
    extras: dict[str, Any] = {}
    message: str = ""
    success: bool | None = None


class _Run(BaseModel):
    command: Command = ""
    is_input: bool = False
    is_static: bool = False
    cwd: PathText | None = None


class _Lines(BaseModel):
    """A file, or its lines from `start` (from 0) to before `end` (-1: to the last)."""

    path: PathText
    start: int = Field(0, ge=0)
    end: int = Field(-1, ge=-1)


class _Read(_Lines):
    impl_source: str = "default"
    view_range: list[int] | None = None


class _Write(_Lines):
    content: str


class _Edit(BaseModel):
    path: PathText
    command: str
    file_text: str | None = None
    old_str: str | None = None
    new_str: str | None = None
    insert_line: int | None = None
    view_range: list[int] | None = None


class _MistakeError(Exception):
    """A mistake of the agent; the text is for the agent."""


@dataclass
class Actor:
    """The V0 actions of one sandbox. `cwd` is where its last command ended; relative paths of
    files begin there."""

    workdir: str
    cwd: str = field(init=False)

    def __post_init__(self) -> None:
        self.cwd = self.workdir

    async def act(self, container: Container, action: Action) -> Observation:
        """Carry out an action. Raises InfraError."""
        kinds: Mapping[str, Callable[[Container, Action], Awaitable[Observation]]] = {
            "run": self._run,
            "read": self._read,
            "write": self._write,
            "edit": self._edit,
        }
        if action.action not in kinds:
            return _error(f"{action.action} is not served here, only {', '.join(kinds)}")
        try:
            return await kinds[action.action](container, action)
        except ValidationError as error:
            faults = (f"{fault['loc'][0]}: {fault['msg']}" for fault in error.errors())
            return _error("; ".join(faults))
        except _MistakeError as mistake:
            return _error(str(mistake))
        except FileNotFoundError as error:
            return _error(
                f"File not found: {error.filename}. Your current working directory is {self.cwd}."
            )
        except OSError as error:  # of the path, not of the sandbox: that is an InfraError
            return _error(f"{error.filename}: {error.strerror}")

    async def _run(self, container: Container, action: Action) -> Observation:
        args = _Run.model_validate(action.args)
        if args.is_input or not args.command.strip():
            raise _MistakeError(
                "ERROR: No previous running command to retrieve logs from or to send input to."
            )
        timeout = action.timeout or RUN_SECONDS
        if args.is_static:
            folder = self._resolve(args.cwd or self.cwd)
            return self._ran(args.command, timeout, await _shell(container, args.command, folder))
        mark = secrets.token_hex(16)
        words = {"command": args.command, "workdir": self.workdir, "mark": mark}
        head = "".join(f"skiff_{name}={quote(word)}\n" for name, word in words.items())
        if len(head.encode()) + len(_SHELL) > COMMAND_BYTES:
            raise _MistakeError(f"a command longer than {COMMAND_BYTES} bytes; write it to a file")
        done = await container.run(
            head + _SHELL, timeout=timeout, cwd=self.workdir, stop=asyncio.Event()
        )
        return self._ran(args.command, timeout, done, mark.encode())

    def _ran(
        self, command: str, timeout: float, done: CommandOutput, mark: bytes | None = None
    ) -> Observation:
        """The observation of a command; with `mark`, its shell has said where it ended."""
        output, known = done.stdout, [""] * 4
        if mark is not None and mark in output:
            output, _, said = output.rpartition(mark)
            known = said.decode(errors="replace").split("\0", 3)
            self.cwd = known[0] or self.cwd
        exit_code = -1 if done.exit_code is None else done.exit_code
        if done.timed_out:
            suffix = f"\n[The command timed out after {timeout:g} seconds and was ended.]"
        else:
            suffix = f"\n[The command completed with exit code {exit_code}.]"
        return Observation(
            observation="run",
            content=(output + done.stderr).decode(errors="replace").rstrip(),
            extras={
                "command": command,
                "metadata": {
                    "exit_code": exit_code,
                    "pid": -1,
                    "username": known[1],
                    "hostname": known[2],
                    "working_dir": self.cwd,
                    "py_interpreter_path": known[3].strip(),
                    "prefix": "",
                    "suffix": suffix,
                },
            },
            message=f"Command `{command}` executed with exit code {exit_code}.",
            success=exit_code == 0,
        )

    async def _read(self, container: Container, action: Action) -> Observation:
        args = _Read.model_validate(action.args)
        path = self._resolve(args.path)
        if args.impl_source == "oh_aci":
            content = await self._view(container, path, args.view_range)
        else:
            lines = (await _text(container, path)).splitlines(keepends=True)
            content = "".join(lines[args.start : None if args.end == -1 else args.end])
        return Observation(
            observation="read",
            content=content,
            extras={"path": args.path, "impl_source": args.impl_source},
            message=f"I read the file {args.path}.",
        )

    async def _write(self, container: Container, action: Action) -> Observation:
        """Like V0, the last line is ended when it is not; unlike V0, never twice."""
        args = _Write.model_validate(action.args)
        path = self._resolve(args.path)
        try:
            before = (await _text(container, path)).splitlines(keepends=True)
        except FileNotFoundError:
            before = []
        after = before[len(before) if args.end == -1 else args.end :]
        new = args.content if args.content.endswith("\n") else f"{args.content}\n"
        await _replace(container, path, "".join([*before[: args.start], new, *after]))
        return Observation(
            observation="write",
            content="",
            extras={"path": args.path},
            message=f"I wrote to the file {args.path}.",
        )

    async def _edit(self, container: Container, action: Action) -> Observation:
        args = _Edit.model_validate(action.args)
        try:
            content = await self._edited(container, args, self._resolve(args.path))
        except _MistakeError as mistake:
            content = f"ERROR:\n{mistake}"
        old, new = args.old_str or "", args.new_str or args.file_text or ""
        changes = difflib.unified_diff(
            old.splitlines(), new.splitlines(), args.path, args.path, lineterm=""
        )
        return Observation(
            observation="edit",
            content=content,
            extras={
                "path": args.path,
                "old_content": args.old_str,
                "new_content": args.new_str,
                "impl_source": "oh_aci",
                "diff": "\n".join(changes),
            },
            message=f"I edited the file {args.path}.",
        )

    async def _edited(self, container: Container, args: _Edit, path: str) -> str:
        """Carry out an edit; the text for the agent."""
        if args.command == "view":
            return await self._view(container, path, args.view_range)
        if args.command == "create":
            if (await _shell(container, f"[ -e {quote(path)} ]")).exit_code == 0:
                raise _MistakeError(f"File already exists at: {path}. Cannot overwrite it.")
            await _replace(container, path, _need(args.file_text, "file_text"))
            return f"File created successfully at: {path}"
        if args.command not in ("str_replace", "insert"):
            raise _MistakeError(
                f"`{args.command}` is not served: view, create, str_replace, insert"
            )
        try:
            text = await _text(container, path)
        except FileNotFoundError:
            raise _MistakeError(f"The path {path} does not exist.") from None
        if args.command == "str_replace":
            line, changed = _str_replace(path, text, args)
        else:
            line, changed = _insert(text, args)
        await _replace(container, path, changed)
        lines = changed.splitlines()
        first, last = max(1, line - CONTEXT_LINES), min(len(lines), line + CONTEXT_LINES)
        return (
            f"The file {path} has been edited. Here's the result of running `cat -n` on a snippet"
            f" of {path}:\n{_numbered(lines, first, last)}\n"
            "Review the changes and make sure they are as expected. Edit the file again if"
            " necessary."
        )

    async def _view(self, container: Container, path: str, view_range: list[int] | None) -> str:
        listing = f"[ -d {quote(path)} ] && find {quote(path)} -maxdepth 2 ! -path '*/.*' | sort"
        listed = await _shell(container, listing)
        if listed.exit_code == 0:
            return (
                f"Here's the files and directories up to 2 levels deep in {path}, excluding hidden"
                f" items:\n{listed.stdout.decode(errors='replace')}"
            )
        lines = (await _text(container, path)).splitlines()
        first, last = _range(view_range, len(lines))
        numbered = _numbered(lines, first, last)
        return f"Here's the result of running `cat -n` on {path}:\n{numbered}\n"

    def _resolve(self, path: str) -> str:
        return posixpath.join(self.cwd, path)


async def _shell(container: Container, command: str, cwd: str = "/") -> CommandOutput:
    return await container.run(command, timeout=FILE_SECONDS, cwd=cwd, stop=asyncio.Event())


async def _text(container: Container, path: str) -> str:
    try:
        return (await content(container, path)).decode()
    except UnicodeDecodeError:
        raise _MistakeError("ERROR_BINARY_FILE") from None


async def _replace(container: Container, path: str, text: str) -> None:
    """Write a file whole; one that exists keeps its mode."""
    found = await _shell(container, f"stat -c %a {quote(path)} 2>/dev/null || echo 644")
    mode = found.stdout.strip()
    await container.write(path, BytesIO(text.encode()), int(mode, 8) if mode.isdigit() else 0o644)


def _str_replace(path: str, text: str, args: _Edit) -> tuple[int, str]:
    """(the changed line, from 1; the new text)"""
    old = _need(args.old_str, "old_str")
    count = text.count(old)
    if count == 0:
        raise _MistakeError(
            f"No replacement was performed, old_str `{old}` did not appear verbatim in {path}."
        )
    if count > 1:
        raise _MistakeError(
            f"No replacement was performed. Multiple occurrences of old_str `{old}` in {path}."
            " Please ensure it is unique."
        )
    return text[: text.index(old)].count("\n") + 1, text.replace(old, args.new_str or "")


def _insert(text: str, args: _Edit) -> tuple[int, str]:
    """(the first inserted line, from 1; the new text)"""
    new, line = _need(args.new_str, "new_str"), args.insert_line
    lines = text.splitlines(keepends=True)
    if line is None or not 0 <= line <= len(lines):
        raise _MistakeError(f"insert_line should be within the range of lines: [0, {len(lines)}]")
    if lines and not lines[-1].endswith("\n"):
        lines[-1] += "\n"
    ended = new if new.endswith("\n") else f"{new}\n"
    return line + 1, "".join([*lines[:line], ended, *lines[line:]])


def _need(value: str | None, name: str) -> str:
    if not value:
        raise _MistakeError(f"Parameter `{name}` is required.")
    return value


def _range(asked: list[int] | None, count: int) -> tuple[int, int]:
    """First and last line to show, from 1."""
    if not asked:
        return 1, count
    first, last = asked[0], asked[1] if len(asked) > 1 else -1
    last = count if last == -1 else min(last, count)
    if not 1 <= first <= max(last, 1):
        raise _MistakeError(f"view_range should be within the range of lines: [1, {count}]")
    return first, last


def _numbered(lines: list[str], first: int, last: int) -> str:
    return "\n".join(f"{i:6}\t{lines[i - 1]}" for i in range(first, min(last, len(lines)) + 1))


def _error(text: str) -> Observation:
    return Observation(observation="error", content=text, extras={"error_id": ""}, message=text)
