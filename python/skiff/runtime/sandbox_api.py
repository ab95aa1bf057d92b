"""A sandbox's own port: the agent-server's bash, file and git endpoints, carried out in its
container.

`/skiff/run` and `/skiff/file` are Skiff's own: one exchange per command, bytes unchanged, and a
failure of the machinery is the answer 502 with `infra_error`, never a failed command.

Not covered: conversations and settings of the agent-server.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import io
import posixpath
from collections.abc import AsyncIterator, Callable
from typing import Annotated, Any

from fastapi import (
    APIRouter,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    UploadFile,
)
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field, field_validator

from skiff.errors import InfraError
from skiff.runtime import git
from skiff.runtime.jobs import Job
from skiff.runtime.sandboxes import Sandbox, State
from skiff.runtime.session import FILE_BYTES
from skiff.runtime.shell import COMMAND_BYTES


class CommandBody(BaseModel):
    """A command, its time limit in seconds and the folder it runs in (default: the workdir)."""

    command: str
    timeout: float = Field(300, gt=0, le=86400)
    cwd: str | None = None

    @field_validator("command")
    @classmethod
    def _fits(cls, command: str) -> str:
        if "\0" in command:
            raise ValueError("a command can't hold NUL")
        if len(command.encode(errors="surrogateescape")) > COMMAND_BYTES:
            raise ValueError(f"longer than {COMMAND_BYTES} bytes: upload it as a file and run that")
        return command


def _addressed(request: Request) -> Sandbox:
    """The sandbox of the port that was called."""
    find: Callable[[int], Sandbox | None] = request.app.state.find
    sandbox = find(request.scope["server"][1])
    if sandbox is None:
        raise InfraError("this sandbox has ended")
    return sandbox


Addressed = Annotated[Sandbox, Depends(_addressed)]


async def _authorized(
    sandbox: Addressed, x_session_api_key: Annotated[str, Header()] = ""
) -> AsyncIterator[Sandbox]:
    """The sandbox, if the key is its own; in use until the call ends."""
    if not hmac.compare_digest(x_session_api_key.encode(), sandbox.key.encode()):
        raise HTTPException(401, "X-Session-API-Key is missing or wrong")
    with sandbox.in_use():
        yield sandbox


Authorized = Annotated[Sandbox, Depends(_authorized)]
router = APIRouter()


def sandbox_app(find: Callable[[int], Sandbox | None]) -> FastAPI:
    """The ASGI application of all sandboxes; `find` gives the sandbox of a port."""
    app = FastAPI(title="Skiff sandbox", docs_url=None, redoc_url=None)
    app.state.find = find
    app.state.jobs = set()
    app.include_router(router)
    app.add_exception_handler(InfraError, _infra_error)
    app.add_exception_handler(OSError, _os_error)
    return app


async def _infra_error(_request: Request, error: Exception) -> JSONResponse:
    return JSONResponse({"infra_error": str(error), "detail": str(error)}, 502)


async def _os_error(_request: Request, error: Exception) -> JSONResponse:
    """A file that could not be read or written in the sandbox."""
    status = 404 if isinstance(error, FileNotFoundError) else 400
    return JSONResponse({"detail": str(error)}, status)


@router.get("/health")
@router.get("/alive")
@router.get("/ready")
async def health(sandbox: Addressed) -> dict[str, str]:
    if sandbox.state is not State.READY:
        raise HTTPException(503, f"the sandbox is {sandbox.state}")
    return {"status": "ok"}


@router.get("/server_info")
async def server_info(sandbox: Addressed) -> dict[str, Any]:
    return {
        "title": "Skiff sandbox",
        "uptime": sandbox.age_seconds(),
        "idle_time": sandbox.idle_seconds(),
    }


@router.post("/skiff/run")
async def run(body: CommandBody, sandbox: Authorized) -> dict[str, Any]:
    done = await sandbox.container.run(
        body.command,
        timeout=body.timeout,
        cwd=body.cwd or sandbox.request.workdir,
        stop=asyncio.Event(),
    )
    return {
        "exit_code": done.exit_code,
        "stdout": base64.b64encode(done.stdout).decode(),
        "stderr": base64.b64encode(done.stderr).decode(),
        "timed_out": done.timed_out,
        "truncated": done.truncated,
        "seconds": done.seconds,
    }


@router.get("/skiff/file")
@router.get("/api/file/download")
async def download(sandbox: Authorized, path: str) -> Response:
    data = await sandbox.container.read(_absolute(path))
    return Response(data, media_type="application/octet-stream")


@router.put("/skiff/file")
async def put(
    request: Request,
    sandbox: Authorized,
    path: str,
    mode: Annotated[str, Query(pattern="^[0-7]{3,4}$")] = "644",
) -> dict[str, int]:
    data = await _body(request)
    await sandbox.container.write(_absolute(path), io.BytesIO(data), int(mode, 8))
    return {"file_size": len(data)}


@router.post("/api/file/upload")
async def upload(sandbox: Authorized, path: str, file: UploadFile) -> dict[str, Any]:
    if (file.size or 0) > FILE_BYTES:
        raise HTTPException(413, f"larger than {FILE_BYTES >> 20} MiB")
    data = await file.read()
    await sandbox.container.write(_absolute(path), io.BytesIO(data), 0o644)
    return {"success": True, "file_size": len(data)}


@router.post("/api/bash/start_bash_command")
async def start_bash_command(
    request: Request, body: CommandBody, sandbox: Authorized
) -> dict[str, Any]:
    job = _job(body, sandbox)
    task = asyncio.create_task(_run_job(job, sandbox))
    running: set[asyncio.Task[None]] = request.app.state.jobs
    running.add(task)
    task.add_done_callback(running.discard)
    return job.command_event()


@router.post("/api/bash/execute_bash_command")
async def execute_bash_command(body: CommandBody, sandbox: Authorized) -> dict[str, Any]:
    job = _job(body, sandbox)
    await _run_job(job, sandbox)
    return job.output or {}


@router.get("/api/bash/bash_events/search")
async def search(
    sandbox: Authorized,
    kind__eq: str | None = None,
    command_id__eq: str | None = None,
    order__gt: int | None = None,
    sort_order: str = "TIMESTAMP",
    limit: Annotated[int, Query(ge=1, le=100)] = 100,
) -> dict[str, Any]:
    found = sandbox.jobs.events(kind=kind__eq, command_id=command_id__eq, after_order=order__gt)
    if sort_order == "TIMESTAMP_DESC":
        found.reverse()
    return {"items": found[:limit], "next_page_id": None}


@router.post("/api/bash/bash_commands/{command_id}/stop")
async def stop(command_id: str, sandbox: Authorized) -> dict[str, bool]:
    job = sandbox.jobs.get(command_id)
    if job is None:
        raise HTTPException(404, "no such command")
    job.stop.set()
    return {"success": True}


@router.get("/api/git/changes")
async def git_changes(sandbox: Authorized, path: str) -> list[dict[str, str]]:
    return await git.changes(sandbox.container, _absolute(path))


@router.get("/api/git/diff")
async def git_diff(sandbox: Authorized, path: str) -> dict[str, Any]:
    return await git.diff(sandbox.container, _absolute(path))


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise HTTPException(422, "path must be absolute and without NUL")
    return posixpath.normpath(path)


async def _body(request: Request) -> bytes:
    """The request's body, refused as soon as it is too large."""
    data = bytearray()
    async for chunk in request.stream():
        data += chunk
        if len(data) > FILE_BYTES:
            raise HTTPException(413, f"larger than {FILE_BYTES >> 20} MiB")
    return bytes(data)


def _job(body: CommandBody, sandbox: Sandbox) -> Job:
    job = Job(body.command, body.cwd or sandbox.request.workdir, body.timeout)
    sandbox.jobs.add(job)
    return job


async def _run_job(job: Job, sandbox: Sandbox) -> None:
    with sandbox.in_use():
        try:
            done = await sandbox.container.run(
                job.command, timeout=job.timeout, cwd=job.cwd, stop=job.stop
            )
        except InfraError as error:
            job.fail(str(error))
        else:
            job.finish(done)
