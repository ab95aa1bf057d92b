"""What a check says: one thing that was looked at, and what to do when it is not right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from skiff.errors import SkiffError


class Verdict(Enum):
    """`ABSENT`: it could not be looked at here, which is no fault."""

    OK = "ok"
    WARN = "warn"
    FAIL = "fail"
    ABSENT = "not here"


@dataclass(frozen=True)
class Check:
    """`what` is one sentence; `place` is the node, "" for this machine."""

    name: str
    verdict: Verdict
    what: str
    remedy: str = ""
    place: str = ""

    def as_dict(self) -> dict[str, str]:
        return asdict(self) | {"verdict": self.verdict.value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Check:
        return cls(**{**data, "verdict": Verdict(data["verdict"])})


def ok(name: str, what: str) -> Check:
    return Check(name, Verdict.OK, what)


def warn(name: str, what: str, remedy: str = "") -> Check:
    return Check(name, Verdict.WARN, what, remedy)


def fail(name: str, what: str, remedy: str = "") -> Check:
    return Check(name, Verdict.FAIL, what, remedy)


def absent(name: str, what: str, remedy: str = "") -> Check:
    return Check(name, Verdict.ABSENT, what, remedy)


def tried(name: str, look: Callable[[], Check]) -> Check:
    """What `look` says; an error of ours that it raises is a fault that was found."""
    try:
        return look()
    except SkiffError as error:
        return failed(name, error)


def failed(name: str, error: SkiffError) -> Check:
    """A check that ended in one of our own sentences."""
    where = f"{error.where}: " if error.where else ""
    return fail(name, f"{where}{error.what}", error.remedy)
