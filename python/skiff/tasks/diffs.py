"""Unified diffs of text files in the form that `git apply` takes. Not covered: binary files."""

from __future__ import annotations

import difflib
import io
import re
from collections.abc import Iterable

_TOUCHED = re.compile(rb"^(?:---|\+\+\+) [ab]/(.+?)\t?$", re.MULTILINE)
_NO_NEWLINE = "\\ No newline at end of file\n"


def file_diff(path: str, old: str | None, new: str | None, *, mode: int = 0o644) -> str:
    """The patch that turns `old` into `new`; None = the file is absent. Empty when they are equal.

    `path` is relative to the repository. `mode` is that of a file that comes or goes.
    """
    if old == new:
        return ""
    head = f"diff --git a/{path} b/{path}\n"
    if old is None:
        head += f"new file mode {0o100000 | mode:o}\n"
    if new is None:
        head += f"deleted file mode {0o100000 | mode:o}\n"
    body = difflib.unified_diff(
        _lines(old),
        _lines(new),
        fromfile="/dev/null" if old is None else f"a/{path}",
        tofile="/dev/null" if new is None else f"b/{path}",
    )
    return head + "".join(_ended(body))


def touched_paths(patch: bytes) -> list[str]:
    """The paths that a unified diff changes, adds or removes, in order, each once."""
    found = (path.decode(errors="replace") for path in _TOUCHED.findall(patch))
    return list(dict.fromkeys(found))


def _lines(text: str | None) -> list[str]:
    # Not splitlines(): git ends lines at \n alone.
    return io.StringIO(text or "", newline="\n").readlines()


def _ended(lines: Iterable[str]) -> Iterable[str]:
    for line in lines:
        yield line if line.endswith("\n") else f"{line}\n{_NO_NEWLINE}"
