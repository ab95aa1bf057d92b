"""The endpoints of OpenHands V0's action execution server, for its `RemoteRuntime` client.

See `actions` for what is served of the actions themselves. There is no editor and no MCP server in
a sandbox; the client is told so in the answers it expects.
"""

from __future__ import annotations

import asyncio
import posixpath
import tempfile
from collections.abc import Iterator, MutableMapping
from typing import Annotated, Any, BinaryIO, cast

from fastapi import Body, Depends, HTTPException, Request
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from skiff.runtime import archives, spool
from skiff.runtime.actions import Action, Actor, Observation
from skiff.runtime.sandbox_messages import PathText
from skiff.runtime.sandbox_routes import (
    BINARY,
    FILE_FORM,
    AbsolutePath,
    Addressed,
    absolute,
    private_router,
)
from skiff.runtime.sandboxes import Sandbox

LIST_SECONDS = 30.0
PIECE_BYTES = 1 << 16
# Names with a NUL after each; folders end with a slash.
_LIST = r"""
for name in * .[!.]* ..?*; do
    if [ -d "$name" ]; then printf '%s/\0' "$name"
    elif [ -e "$name" ] || [ -L "$name" ]; then printf '%s\0' "$name"; fi
done
"""

router = private_router()


class ExecuteActionBody(BaseModel):
    action: Action


class ListFilesBody(BaseModel):
    """A folder; relative to the workdir, which is the default."""

    path: PathText | None = None


class FileUploaded(BaseModel):
    filename: str
    destination: str
    recursive: bool


class ConnectionToken(BaseModel):
    """Of the editor in the sandbox: there is none."""

    token: str | None = None


class McpUpdated(BaseModel):
    detail: str
    router_error_log: str


def _actor(request: Request, sandbox: Addressed) -> Actor:
    actors: MutableMapping[Sandbox, Actor] = request.app.state.actors
    if sandbox not in actors:
        actors[sandbox] = Actor(sandbox.request.workdir)
    return actors[sandbox]


@router.post("/execute_action")
async def execute_action(
    body: ExecuteActionBody, sandbox: Addressed, actor: Annotated[Actor, Depends(_actor)]
) -> Observation:
    """Carry out one action."""
    return await actor.act(sandbox.container, body.action)


@router.post("/list_files")
async def list_files(body: ListFilesBody, sandbox: Addressed) -> list[str]:
    """The names in a folder, folders first and with a slash; none where there is no folder."""
    folder = posixpath.join(sandbox.request.workdir, body.path or "")
    done = await sandbox.container.run(
        _LIST, timeout=LIST_SECONDS, cwd=folder, stop=asyncio.Event()
    )
    if done.truncated:
        raise HTTPException(400, "too many names")
    if done.exit_code != 0:
        return []
    names = done.stdout.decode(errors="replace").split("\0")[:-1]
    return sorted(names, key=lambda name: (not name.endswith("/"), name.lower()))


@router.post(
    "/upload_file", openapi_extra={"requestBody": {"required": True, "content": FILE_FORM}}
)
async def upload_file(
    request: Request, sandbox: Addressed, destination: PathText, recursive: bool = False
) -> FileUploaded:
    """Write a file into the folder `destination`; `recursive`: unpack a zip there."""
    folder = absolute(destination)
    async with spool.form_file(request) as (filename, source):
        name = posixpath.basename(filename)
        if recursive:
            await archives.unpack(sandbox.container, source, folder)
        elif name in ("", ".", ".."):
            raise HTTPException(422, "the file has no name")
        else:
            await sandbox.container.write(posixpath.join(folder, name), source, 0o644)
    return FileUploaded(filename=name, destination=folder, recursive=recursive)


@router.get(
    "/download_files",
    response_class=StreamingResponse,
    responses={200: {"content": {"application/zip": BINARY}}},
)
async def download_files(sandbox: Addressed, path: AbsolutePath) -> StreamingResponse:
    """A zip of a folder's plain files."""
    target = cast(BinaryIO, tempfile.SpooledTemporaryFile(spool.MEMORY_BYTES))  # noqa: SIM115
    try:
        await archives.pack(sandbox.container, path, target)
        size = spool.size(target)
    except BaseException:
        target.close()
        raise
    return StreamingResponse(
        _pieces(target), media_type="application/zip", headers={"Content-Length": str(size)}
    )


@router.get("/vscode/connection_token")
async def connection_token() -> ConnectionToken:
    """There is no editor."""
    return ConnectionToken()


@router.post("/update_mcp_server")
async def update_mcp_server(servers: Annotated[list[Any], Body()]) -> McpUpdated:
    """None is started; the answer says so when any was asked for."""
    refusal = "sandboxes run no MCP servers" if servers else ""
    return McpUpdated(detail="no MCP server was started", router_error_log=refusal)


def _pieces(source: BinaryIO) -> Iterator[bytes]:
    with source:
        while piece := source.read(PIECE_BYTES):
            yield piece
