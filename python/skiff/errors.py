"""The errors a user of Skiff sees: what is wrong, where, and what to do about it.

Not covered: programming errors. Those keep their traceback.
"""

from __future__ import annotations


class SkiffError(Exception):
    """A problem that the user can act on.

    `what` states the fact, `where` names the file, field or host, `remedy` says what to do next.
    Entry points print str(error) and exit with `exit_code`, without a traceback.
    """

    exit_code = 2

    def __init__(self, what: str, *, where: str = "", remedy: str = "") -> None:
        super().__init__(what, where, remedy)
        self.what = what
        self.where = where
        self.remedy = remedy

    def __reduce__(self) -> tuple[object, ...]:
        """Crosses processes: the default would give all three as positions."""
        return _again, (type(self), self.what, self.where, self.remedy)

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" if self.where else self.what
        return f"{text}\n  -> {self.remedy}" if self.remedy else text


def _again(kind: type[SkiffError], what: str, where: str, remedy: str) -> SkiffError:
    return kind(what, where=where, remedy=remedy)


class ConfigError(SkiffError):
    """The profile, or a file it names, is wrong. Nothing was started."""


class InfraError(SkiffError):
    """Our own machinery failed (sandbox, runtime server, engine), not the agent.

    A trajectory that meets one is masked and counted; it is never scored 0.
    """

    exit_code = 3


class TaskError(SkiffError):
    """A task or a dataset row cannot be read or does not do what it promises."""


class ImageError(SkiffError):
    """An image cannot be had, or is not what it should be; trying again will not help."""
