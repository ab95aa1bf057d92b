"""The agent-server's git endpoints: what has changed since HEAD, by git in the sandbox.

The paths are relative to the folder that was asked for. A folder without repository, or an image
without git, has no changes. OSError when git's answer is too long or takes too long.
"""

from __future__ import annotations

import asyncio
import errno
import posixpath
import shlex
from typing import Literal

from skiff.runtime.backend import CommandOutput, Container
from skiff.runtime.sandbox_messages import GitChange, GitDiff

SECONDS = 30.0
FILE_BYTES = 1 << 20
Status = Literal["ADDED", "DELETED", "UPDATED"]
STATUS: dict[str, Status] = {"A": "ADDED", "D": "DELETED"}  # all else is UPDATED


async def changes(container: Container, folder: str) -> list[GitChange]:
    """What differs from HEAD; a rename is a deletion and an addition."""
    listed = await _git(container, folder, "diff --no-renames --name-status --relative -z HEAD")
    if listed.exit_code != 0:
        return []
    words = listed.stdout.decode(errors="replace").split("\0")
    found = [
        GitChange(status=STATUS.get(status, "UPDATED"), path=path)
        for status, path in zip(words[::2], words[1::2], strict=False)
    ]
    untracked = await _git(container, folder, "ls-files --others --exclude-standard -z")
    paths = filter(None, untracked.stdout.decode(errors="replace").split("\0"))
    return found + [GitChange(status="ADDED", path=path) for path in paths]


async def diff(container: Container, path: str) -> GitDiff:
    """The texts of a file at HEAD and now; nulls outside a repository."""
    folder, name = posixpath.split(path)
    if (await _git(container, folder, "rev-parse HEAD")).exit_code != 0:
        return GitDiff(original=None, modified=None)
    original = await _git(container, folder, f"show HEAD:./{shlex.quote(name)}")
    try:
        modified = await container.read(path, offset=0, length=FILE_BYTES)
    except OSError:
        modified = b""
    return GitDiff(original=_text(original.stdout), modified=_text(modified))


async def _git(container: Container, folder: str, arguments: str) -> CommandOutput:
    command = f"git --no-pager {arguments} 2>/dev/null"
    done = await container.run(command, timeout=SECONDS, cwd=folder, stop=asyncio.Event())
    if done.truncated or done.timed_out:
        raise OSError(errno.EFBIG, "git has too much to say", folder)
    return done


def _text(data: bytes) -> str:
    return data[:FILE_BYTES].decode(errors="replace")
