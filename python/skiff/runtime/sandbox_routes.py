"""What the routes of a sandbox's port have in common: the sandbox, a path, the failures."""

from __future__ import annotations

import posixpath
from typing import Annotated, Any

from fastapi import APIRouter, Depends, HTTPException, Request, Security
from fastapi.security import APIKeyHeader

from skiff.runtime.faults import Failed
from skiff.runtime.sandbox_access import KEY_HEADER
from skiff.runtime.sandbox_messages import PathText
from skiff.runtime.sandboxes import Sandbox

BINARY: dict[str, Any] = {"schema": {"type": "string", "format": "binary"}}
FILE_FORM: dict[str, Any] = {
    "multipart/form-data": {
        "schema": {
            "type": "object",
            "required": ["file"],
            "properties": {"file": BINARY["schema"]},
        }
    }
}
FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failed, "description": words}
    for status, words in {
        400: "The request can't be carried out in this sandbox",
        401: "The key is missing or wrong",
        404: "No such file or command",
        413: "The body is too large",
        422: "The request does not validate",
        502: "The machinery failed: see infra_error",
    }.items()
}


def addressed(request: Request) -> Sandbox:
    """The sandbox whose port was called; its key was checked by `SandboxAccess`."""
    sandbox: Sandbox = request.state.sandbox
    return sandbox


def absolute(path: PathText) -> str:
    """A query's path, normalised. Raises HTTPException 422."""
    if not path.startswith("/"):
        raise HTTPException(422, "path must be absolute")
    return "/" + posixpath.normpath(path).lstrip("/")


Addressed = Annotated[Sandbox, Depends(addressed)]
AbsolutePath = Annotated[str, Depends(absolute)]


def private_router() -> APIRouter:
    """A router whose endpoints need the sandbox's key, and say so in the API's description."""
    return APIRouter(
        dependencies=[Security(APIKeyHeader(name=KEY_HEADER, auto_error=False))],
        responses=FAILURES,
    )
