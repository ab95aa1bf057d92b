"""A sandbox's own port: the agent-server's bash, file and git endpoints, carried out in its
container. `action_api` adds those of the older action execution server.

`/skiff/run` and `/skiff/file` are Skiff's own: one exchange per command, bytes unchanged, and a
failure of the machinery is the answer 502 with `infra_error`, never a failed command.

Paths are names inside the sandbox: its own processes open them, so that no link and no `..` leads
to a file of the host. Only regular files are read and overwritten.

Not covered: conversations and settings of the agent-server.
"""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator, Callable
from typing import Annotated
from weakref import WeakKeyDictionary

from fastapi import APIRouter, FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from skiff.errors import InfraError
from skiff.runtime import action_api, git, spool
from skiff.runtime.faults import Failed, answer_faults, failed, sendable
from skiff.runtime.jobs import Job, TooManyJobsError
from skiff.runtime.reading import PIECE_BYTES, pieces
from skiff.runtime.sandbox_access import SandboxAccess
from skiff.runtime.sandbox_messages import (
    BashCommand,
    BashEvents,
    BashOutput,
    CommandBody,
    CommandDone,
    GitChange,
    GitDiff,
    Health,
    ServerInfo,
    Success,
    Written,
)
from skiff.runtime.sandbox_routes import (
    BINARY,
    FILE_FORM,
    AbsolutePath,
    Addressed,
    private_router,
)
from skiff.runtime.sandboxes import Sandbox, State

BYTES = "application/octet-stream"

private = private_router()
public = APIRouter()


def sandbox_app(find: Callable[[int], Sandbox | None]) -> FastAPI:
    """The ASGI application of all sandboxes; `find` gives the sandbox of a port."""
    app = FastAPI(title="Skiff sandbox", docs_url=None, redoc_url=None)
    app.state.jobs = set()
    app.state.actors = WeakKeyDictionary()
    app.include_router(public)
    app.include_router(private)
    app.include_router(action_api.router)
    app.add_middleware(SandboxAccess, find=find)
    answer_faults(app)
    app.add_exception_handler(OSError, _os_error)
    app.add_exception_handler(TooManyJobsError, _too_many)
    return app


async def _os_error(_request: Request, error: Exception) -> JSONResponse:
    """A file that could not be read or written in the sandbox."""
    return failed(404 if isinstance(error, FileNotFoundError) else 400, sendable(str(error)))


async def _too_many(_request: Request, error: Exception) -> JSONResponse:
    return failed(429, str(error))


@public.get("/health")
@public.get("/alive", operation_id="alive")
@public.get("/ready", operation_id="ready")
async def health(sandbox: Addressed) -> Health:
    """Whether the sandbox serves."""
    if sandbox.state is not State.READY:
        raise HTTPException(503, f"the sandbox is {sandbox.state}")
    return Health(status="ok")


@public.get("/server_info")
async def server_info(sandbox: Addressed) -> ServerInfo:
    """How old the sandbox is, and how long no call has come."""
    return ServerInfo(
        title="Skiff sandbox", uptime=sandbox.age_seconds(), idle_time=sandbox.idle_seconds()
    )


@private.post("/skiff/run")
async def run(body: CommandBody, sandbox: Addressed) -> CommandDone:
    """Run a command and wait for its end."""
    done = await sandbox.container.run(
        body.command,
        timeout=body.timeout,
        cwd=body.cwd or sandbox.request.workdir,
        stop=asyncio.Event(),
    )
    return CommandDone(
        exit_code=done.exit_code,
        stdout=base64.b64encode(done.stdout).decode(),
        stderr=base64.b64encode(done.stderr).decode(),
        timed_out=done.timed_out,
        truncated=done.truncated,
        seconds=done.seconds,
    )


@private.get(
    "/skiff/file",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": BINARY}}},
)
@private.get(
    "/api/file/download",
    operation_id="api_download",
    response_class=Response,
    responses={200: {"content": {"application/octet-stream": BINARY}}},
)
async def download(sandbox: Addressed, path: AbsolutePath) -> Response:
    """A regular file's bytes, a large one in pieces. One that fails in the middle breaks the
    connection off, so that no client takes it for whole."""
    parts = pieces(sandbox.container, path)
    first = await anext(parts)  # whatever is wrong with the file is answered before any of it
    if len(first) < PIECE_BYTES:
        return Response(first, media_type=BYTES)
    return StreamingResponse(_joined(first, parts), media_type=BYTES)


@private.put(
    "/skiff/file",
    openapi_extra={"requestBody": {"content": {"application/octet-stream": BINARY}}},
)
async def put(
    request: Request,
    sandbox: Addressed,
    path: AbsolutePath,
    mode: Annotated[str, Query(pattern="^[0-7]{3,4}$")] = "644",
) -> Written:
    """Write the body to a file, with the octal mode."""
    async with spool.body(request) as source:
        file_size = spool.size(source)
        await sandbox.container.write(path, source, int(mode, 8))
    return Written(file_size=file_size)


@private.post(
    "/api/file/upload",
    openapi_extra={"requestBody": {"required": True, "content": FILE_FORM}},
)
async def upload(request: Request, sandbox: Addressed, path: AbsolutePath) -> Written:
    """Write the multipart field `file` to a file."""
    async with spool.form_file(request) as (_, source):
        file_size = spool.size(source)
        await sandbox.container.write(path, source, 0o644)
    return Written(file_size=file_size)


@private.post("/api/bash/start_bash_command", responses={429: {"model": Failed}})
async def start_bash_command(
    request: Request, body: CommandBody, sandbox: Addressed
) -> BashCommand:
    """Begin a command; its output is searched for."""
    job = _job(body, sandbox)
    task = asyncio.create_task(_run_job(job, sandbox))
    running: set[asyncio.Task[BashOutput]] = request.app.state.jobs
    running.add(task)
    task.add_done_callback(running.discard)
    return job.command_event()


@private.post("/api/bash/execute_bash_command", responses={429: {"model": Failed}})
async def execute_bash_command(body: CommandBody, sandbox: Addressed) -> BashOutput:
    """Run a command and wait for its end."""
    return await _run_job(_job(body, sandbox), sandbox)


@private.get("/api/bash/bash_events/search")
async def search(
    sandbox: Addressed,
    kind__eq: str | None = None,
    command_id__eq: str | None = None,
    order__gt: int | None = None,
    sort_order: str = "TIMESTAMP",
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> BashEvents:
    """Commands and outputs. The output of a command unknown here is a failure of the machinery.

    A search for the output of one command waits a little for that command's end.
    """
    job = sandbox.jobs.get(command_id__eq) if command_id__eq is not None else None
    if job is not None and kind__eq == "BashOutput":
        await job.linger()
    found = sandbox.jobs.events(kind=kind__eq, command_id=command_id__eq, after_order=order__gt)
    if sort_order == "TIMESTAMP_DESC":
        found.reverse()
    return BashEvents(items=found[:limit])


@private.post("/api/bash/bash_commands/{command_id}/stop")
async def stop(command_id: str, sandbox: Addressed) -> Success:
    """End a command: SIGTERM, a second later SIGKILL."""
    job = sandbox.jobs.get(command_id)
    if job is None:
        raise HTTPException(404, "no such command")
    job.stop.set()
    return Success()


@private.get("/api/git/changes")
async def git_changes(sandbox: Addressed, path: AbsolutePath) -> list[GitChange]:
    """What differs from HEAD in a folder."""
    return await git.changes(sandbox.container, path)


@private.get("/api/git/diff")
async def git_diff(sandbox: Addressed, path: AbsolutePath) -> GitDiff:
    """A file at HEAD and now."""
    return await git.diff(sandbox.container, path)


async def _joined(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for piece in rest:
        yield piece


def _job(body: CommandBody, sandbox: Sandbox) -> Job:
    job = Job(body.command, body.cwd or sandbox.request.workdir, body.timeout)
    sandbox.jobs.add(job)
    return job


async def _run_job(job: Job, sandbox: Sandbox) -> BashOutput:
    with sandbox.in_use():
        try:
            done = await sandbox.container.run(
                job.command, timeout=job.timeout, cwd=job.cwd, stop=job.stop
            )
        except InfraError as error:
            output = job.fail(str(error))
        else:
            output = job.finish(done)
    sandbox.jobs.trim()
    return output
