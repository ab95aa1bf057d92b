"""What is said at a sandbox's own port: bodies and answers of the agent-server's endpoints and of
Skiff's own. The older action endpoints speak as `actions` says."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, Field

from skiff.runtime.shell import COMMAND_BYTES

PATH_BYTES = 4096  # the kernel's own limit


def _command(text: str) -> str:
    if "\0" in text:
        raise ValueError("a command can't hold NUL")
    if len(text.encode(errors="surrogateescape")) > COMMAND_BYTES:
        raise ValueError(f"longer than {COMMAND_BYTES} bytes: upload it as a file and run that")
    return text


def _path(text: str) -> str:
    if "\0" in text:
        raise ValueError("a path can't hold NUL")
    if len(text.encode()) > PATH_BYTES:
        raise ValueError(f"a path longer than {PATH_BYTES} bytes")
    return text


Command = Annotated[str, AfterValidator(_command)]
PathText = Annotated[str, AfterValidator(_path)]


class CommandBody(BaseModel):
    """A command, its time limit in seconds and the folder it runs in (default: the workdir)."""

    command: Command
    timeout: float = Field(300, gt=0, le=86400)
    cwd: PathText | None = None


class CommandDone(BaseModel):
    """See `backend.CommandOutput`; the two outputs are base64."""

    exit_code: int | None
    stdout: str
    stderr: str
    timed_out: bool
    truncated: bool
    seconds: float


class BashCommand(BaseModel):
    """A command as it was given. `timeout` in seconds."""

    id: str
    timestamp: str
    command: str
    cwd: str
    timeout: int
    kind: Literal["BashCommand"] = "BashCommand"


class BashOutput(BaseModel):
    """How a command ended. `infra_error` says that the machinery failed, not the command."""

    id: str
    timestamp: str
    command_id: str
    order: int = 0
    exit_code: int | None
    stdout: str | None
    stderr: str | None
    infra_error: str | None
    kind: Literal["BashOutput"] = "BashOutput"


class BashEvents(BaseModel):
    """Found events."""

    items: list[BashCommand | BashOutput]
    next_page_id: str | None = None


class Written(BaseModel):
    """A file was written. `file_size` in bytes."""

    success: bool = True
    file_size: int


class Success(BaseModel):
    success: bool = True


class Health(BaseModel):
    status: str


class ServerInfo(BaseModel):
    """Times in seconds."""

    title: str
    uptime: float
    idle_time: float


class GitChange(BaseModel):
    """A file that differs from HEAD; its path is relative to the folder that was asked for."""

    status: Literal["ADDED", "DELETED", "UPDATED"]
    path: str


class GitDiff(BaseModel):
    """A file's texts at HEAD and now; nulls outside a repository."""

    original: str | None
    modified: str | None
