"""How a port answers when a call fails: always a `Failed`, never a page or a traceback."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from skiff.errors import InfraError


class Failed(BaseModel):
    """Every answer but 2xx. `infra_error` is set when the machinery failed, not the request."""

    detail: Any
    infra_error: str | None = None


def failed(status: int, detail: Any, *, infra: bool = False) -> JSONResponse:
    """The answer `Failed`."""
    return JSONResponse({"detail": detail, "infra_error": str(detail) if infra else None}, status)


def answer_faults(app: FastAPI) -> None:
    """Let `app` answer every failed call with `Failed`: 502 for an InfraError."""
    app.add_exception_handler(InfraError, _infra_error)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _unexpected)


async def _infra_error(_request: Request, error: Exception) -> JSONResponse:
    return failed(502, sendable(str(error)), infra=True)


async def _http_error(_request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = failed(error.status_code, sendable(error.detail))
    answer.headers.update(error.headers or {})
    return answer


async def _invalid(_request: Request, error: Exception) -> JSONResponse:
    """Without the input: it may be large, or no text at all."""
    assert isinstance(error, RequestValidationError)
    faults = [
        {"loc": [sendable(str(part)) for part in fault["loc"]], "msg": sendable(fault["msg"])}
        for fault in error.errors()
    ]
    return failed(422, faults)


async def _unexpected(_request: Request, error: Exception) -> JSONResponse:
    """A fault of ours; its traceback is in the server's log."""
    return failed(500, f"unexpected {type(error).__name__}", infra=True)


def sendable(text: str) -> str:
    """`text` without what UTF-8 cannot hold."""
    return text.encode(errors="replace").decode()
