"""What a symptom is: a line that some program writes, its cause, and what to do about it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Symptom:
    """One rule.

    pattern   searched in single lines, without colours and without Ray's prefix; a line that a
              healthy run writes must not match
    cause     one sentence; \\1 and so on are the pattern's groups
    harmless  people ask about the line, but it is no fault
    """

    name: str
    pattern: str
    cause: str
    remedy: str
    harmless: bool = False

    @cached_property
    def regex(self) -> re.Pattern[str]:
        return re.compile(self.pattern)
