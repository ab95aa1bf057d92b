"""The server's own port: start, find and stop sandboxes, in OpenHands' remote-runtime protocol.

`status` and `pod_status` are two fields with two vocabularies; a client waits while the latter is
`pending` and gives up when it is `failed`. A full server is `pending`, never an error.
Skiff's own additions: `resources`, `lifetime_seconds` and `idle_seconds` in /start, `failure` in
the answers, `wait_seconds` in /sessions (answer as soon as the sandbox is no longer pending).

Not covered: pause, resume, build, metrics.
"""

from __future__ import annotations

import asyncio
import hmac
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, HTTPException, Query
from pydantic import BaseModel, Field

from skiff.config import Config
from skiff.runtime.backend import Limits
from skiff.runtime.sandboxes import Sandbox, Sandboxes, SandboxRequest, State

HOLD_SECONDS = 20.0  # how long /start and /sessions wait for a pending sandbox
STATUS = {
    State.QUEUED: ("starting", "pending"),
    State.STARTING: ("starting", "pending"),
    State.READY: ("running", "ready"),
    State.STOPPED: ("stopped", "not found"),
    State.FAILED: ("error", "failed"),
}


class Resources(BaseModel):
    """Limits of one sandbox; what is left out comes from the server's configuration."""

    memory_mib: int | None = Field(None, gt=0)
    cpus: float | None = Field(None, gt=0)
    pids: int | None = Field(None, gt=0)
    disk_mib: int | None = Field(None, gt=0)
    output_bytes: int | None = Field(None, gt=0)
    network: bool | None = None


class StartBody(BaseModel):
    """/start. `command` and the keys that are not listed are accepted and ignored: sandboxes run
    no server of their own."""

    image: str
    session_id: str = Field(min_length=1, max_length=200)
    command: str | list[str] | None = None
    working_dir: str = "/"
    environment: dict[str, str] = {}
    resource_factor: float = Field(1, gt=0, le=8)
    resources: Resources = Resources()
    lifetime_seconds: float | None = Field(None, gt=0)
    idle_seconds: float | None = Field(None, gt=0)
    hold_seconds: float = Field(HOLD_SECONDS, ge=0, le=60)


class StopBody(BaseModel):
    runtime_id: str


def control_app(sandboxes: Sandboxes, config: Config, key: str) -> FastAPI:
    """The ASGI application; every call but the health checks needs `X-API-Key: <key>`."""

    def check_key(x_api_key: Annotated[str, Header()] = "") -> None:
        if not hmac.compare_digest(x_api_key.encode(), key.encode()):
            raise HTTPException(401, "X-API-Key is missing or wrong")

    app = FastAPI(title="Skiff runtime", docs_url=None, redoc_url=None)
    private = [Depends(check_key)]

    @app.get("/health")
    @app.get("/alive")
    @app.get("/ready")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "sandboxes": sandboxes.counts()}

    @app.post("/start", dependencies=private)
    async def start(body: StartBody) -> dict[str, Any]:
        sandbox = await sandboxes.start(_request(body, config))
        return await _settled(sandbox, body.hold_seconds)

    @app.get("/sessions/{session_id}", dependencies=private)
    async def session(
        session_id: str, wait_seconds: Annotated[float, Query(ge=0, le=60)] = 0
    ) -> dict[str, Any]:
        return await _settled(_found(sandboxes.by_session(session_id)), wait_seconds)

    @app.get("/runtime/{runtime_id}", dependencies=private)
    async def runtime(runtime_id: str) -> dict[str, Any]:
        return _answer(_found(sandboxes.by_runtime(runtime_id)))

    @app.get("/list", dependencies=private)
    async def list_all() -> dict[str, Any]:
        runtimes = [_answer(sandbox) for sandbox in sandboxes.all()]
        return {"runtimes": runtimes, "total": len(runtimes)}

    @app.post("/stop", dependencies=private)
    async def stop(body: StopBody) -> dict[str, Any]:
        sandbox = _found(sandboxes.by_runtime(body.runtime_id))
        sandboxes.stop(sandbox, "stopped by its client")
        return _answer(sandbox)

    return app


def _request(body: StartBody, config: Config) -> SandboxRequest:
    limits = config.sandbox.model_dump() | body.resources.model_dump(exclude_none=True)
    if body.resource_factor != 1:
        limits["memory_mib"] = int(limits["memory_mib"] * body.resource_factor)
        limits["cpus"] *= body.resource_factor
    return SandboxRequest(
        session_id=body.session_id,
        image=body.image,
        workdir=body.working_dir,
        environment=body.environment,
        limits=Limits(**limits),
        lifetime_seconds=body.lifetime_seconds or config.runtime.lifetime_seconds,
        idle_seconds=body.idle_seconds or config.runtime.idle_seconds,
    )


def _found(sandbox: Sandbox | None) -> Sandbox:
    if sandbox is None:
        raise HTTPException(404, "no such sandbox")
    return sandbox


async def _settled(sandbox: Sandbox, seconds: float) -> dict[str, Any]:
    """The answer, as soon as the sandbox is no longer pending, at the latest after `seconds`."""
    if not sandbox.settled.is_set():
        waiter = asyncio.create_task(sandbox.settled.wait())
        await asyncio.wait([waiter], timeout=seconds)
        waiter.cancel()
    return _answer(sandbox)


def _answer(sandbox: Sandbox) -> dict[str, Any]:
    status, pod_status = STATUS[sandbox.state]
    return {
        "runtime_id": sandbox.runtime_id,
        "session_id": sandbox.request.session_id,
        "image": sandbox.request.image,
        "url": sandbox.url,
        "session_api_key": sandbox.key,
        "status": status,
        "pod_status": pod_status,
        "pod_logs": sandbox.reason,
        "failure": sandbox.failure,
        "work_hosts": {},
        "restart_count": 0,
        "restart_reasons": [],
    }
