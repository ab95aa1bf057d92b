"""The agent-server's git endpoints: what has changed since HEAD, by git in the sandbox.

The paths are relative to the folder that was asked for. A folder without repository, or an image
without git, has no changes.
"""

from __future__ import annotations

import asyncio
import posixpath
import shlex
from typing import Any

from skiff.runtime.backend import CommandOutput, Container

SECONDS = 30.0
FILE_BYTES = 1 << 20
STATUS = {"A": "ADDED", "D": "DELETED", "M": "UPDATED", "T": "UPDATED", "U": "UPDATED"}


async def changes(container: Container, folder: str) -> list[dict[str, str]]:
    """[{status: ADDED|DELETED|UPDATED, path}]; a rename is a deletion and an addition."""
    listed = await _git(container, folder, "diff --no-renames --name-status --relative -z HEAD")
    if listed.exit_code != 0:
        return []
    words = listed.stdout.decode(errors="replace").split("\0")
    found = [
        {"status": STATUS.get(status, "UPDATED"), "path": path}
        for status, path in zip(words[::2], words[1::2], strict=False)
    ]
    untracked = await _git(container, folder, "ls-files --others --exclude-standard -z")
    paths = filter(None, untracked.stdout.decode(errors="replace").split("\0"))
    return found + [{"status": "ADDED", "path": path} for path in paths]


async def diff(container: Container, path: str) -> dict[str, Any]:
    """{original, modified}: the texts of a file at HEAD and now; nulls outside a repository."""
    folder, name = posixpath.split(path)
    if (await _git(container, folder, "rev-parse HEAD")).exit_code != 0:
        return {"original": None, "modified": None}
    original = await _git(container, folder, f"show HEAD:./{shlex.quote(name)}")
    try:
        modified = await container.read(path)
    except OSError:
        modified = b""
    return {"original": _text(original.stdout), "modified": _text(modified)}


async def _git(container: Container, folder: str, arguments: str) -> CommandOutput:
    command = f"git --no-pager {arguments} 2>/dev/null"
    return await container.run(command, timeout=SECONDS, cwd=folder, stop=asyncio.Event())


def _text(data: bytes) -> str:
    return data[:FILE_BYTES].decode(errors="replace")
