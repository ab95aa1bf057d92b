"""The server's own port: start, find, pause and stop sandboxes, build images, watch the server.

OpenHands' remote-runtime protocol, as its clients of both generations speak it. A full server is
`pending`, never an error. Skiff's own additions: `resources`, the three times and `hold_seconds` in
/start, `wait_seconds` in /sessions (answer as soon as the sandbox is no longer pending),
/start_batch, /lease, /snapshot, /metrics.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Form, HTTPException, Query, Response, Security, UploadFile
from fastapi.security import APIKeyHeader

from skiff.config import Config
from skiff.errors import TaskError
from skiff.runtime.backend import Limits
from skiff.runtime.builds import TAGS, Build, Builds, check_image_name
from skiff.runtime.control_access import KEY_HEADER, ControlAccess
from skiff.runtime.control_messages import (
    BATCH,
    BuildAnswer,
    BuildStatusAnswer,
    HealthAnswer,
    ImageAnswer,
    ImageDetails,
    ImageName,
    LeaseAnswer,
    LeaseBody,
    ListAnswer,
    PodStatus,
    PrefixAnswer,
    RuntimeAnswer,
    RuntimeBody,
    SnapshotAnswer,
    SnapshotBody,
    StartBatchBody,
    StartBody,
    Status,
)
from skiff.runtime.faults import Failed, answer_faults
from skiff.runtime.metrics import Metrics
from skiff.runtime.sandboxes import Cause, Sandbox, Sandboxes, SandboxRequest, State

STATUS: dict[State, tuple[Status, PodStatus]] = {
    State.QUEUED: ("starting", "pending"),
    State.STARTING: ("starting", "pending"),
    State.READY: ("running", "ready"),
    State.PAUSED: ("paused", "not found"),
    State.STOPPED: ("stopped", "not found"),
    State.FAILED: ("error", "failed"),
}
MIB = 1 << 20
Answers = dict[int | str, dict[str, Any]]
UNKNOWN: Answers = {404: {"model": Failed}}
UNFIT: Answers = {**UNKNOWN, 409: {"model": Failed}}
FAILED: Answers = {status: {"model": Failed} for status in (400, 401, 408, 413, 422, 502)}
TEXT: Answers = {200: {"content": {"text/plain": {}}}}
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"


def control_app(
    sandboxes: Sandboxes, builds: Builds, metrics: Metrics, config: Config, key: str, nonce: str
) -> FastAPI:
    """The ASGI application; every call but the health checks needs `X-API-Key: <key>`. `nonce`
    tells this start of the server from others."""
    app = FastAPI(title="Skiff runtime", docs_url=None, redoc_url=None)
    app.add_middleware(ControlAccess, key=key, context_bytes=config.runtime.build_context_mib * MIB)
    answer_faults(app)
    app.include_router(_health(sandboxes, nonce))
    described = APIKeyHeader(name=KEY_HEADER, auto_error=False)  # ControlAccess checks it
    for router in (
        _starting(sandboxes, config),
        _finding(sandboxes),
        _turning(sandboxes, config),
        _building(sandboxes, builds, config),
        _watching(metrics),
    ):
        app.include_router(
            router,
            dependencies=[Security(described)],
            responses=FAILED,
        )
    return app


def _health(sandboxes: Sandboxes, nonce: str) -> APIRouter:
    router = APIRouter()

    @router.get("/health")
    @router.get("/alive", operation_id="alive")
    @router.get("/ready", operation_id="ready")
    async def health() -> HealthAnswer:
        counts = sandboxes.counts()
        return HealthAnswer(status="ok", nonce=nonce, sandboxes=counts, free=counts["free"])

    return router


def _starting(sandboxes: Sandboxes, config: Config) -> APIRouter:
    router = APIRouter()

    @router.post("/start")
    async def start(body: StartBody) -> RuntimeAnswer:
        sandbox = await sandboxes.start(_request(body, config))
        await _settled([sandbox], body.hold_seconds)
        return _answer(sandbox)

    @router.post("/start_batch")
    async def start_batch(body: StartBatchBody) -> list[RuntimeAnswer]:
        started = [await sandboxes.start(_request(start, config)) for start in body.starts]
        await _settled(started, body.hold_seconds)
        return [_answer(sandbox) for sandbox in started]

    @router.post("/lease")
    async def lease(body: LeaseBody) -> LeaseAnswer:
        """Renew leases."""
        renewed, unknown = [], []
        single = [] if body.runtime_id is None else [body.runtime_id]
        for runtime_id in [*single, *body.runtime_ids]:
            sandbox = sandboxes.by_runtime(runtime_id)
            if sandbox is None or sandbox.state.ended:
                unknown.append(runtime_id)
            else:
                sandboxes.renew(sandbox)
                renewed.append(runtime_id)
        return LeaseAnswer(renewed=renewed, unknown=unknown)

    return router


def _finding(sandboxes: Sandboxes) -> APIRouter:
    router = APIRouter()

    @router.get("/sessions/batch")
    async def batch(ids: Annotated[list[str], Query(max_length=BATCH)]) -> list[RuntimeAnswer]:
        """Those of the sessions that the server knows."""
        found = (sandboxes.by_session(session_id) for session_id in ids)
        return [_answer(sandbox) for sandbox in found if sandbox is not None]

    @router.get("/sessions/{session_id:path}", responses=UNKNOWN)
    async def session(
        session_id: str,
        wait_seconds: Annotated[float, Query(ge=0, le=60, allow_inf_nan=False)] = 0,
    ) -> RuntimeAnswer:
        sandbox = _found(sandboxes.by_session(session_id))
        await _settled([sandbox], wait_seconds)
        return _answer(sandbox)

    @router.get("/runtime/{runtime_id}", responses=UNKNOWN)
    async def runtime(runtime_id: str) -> RuntimeAnswer:
        return _answer(_found(sandboxes.by_runtime(runtime_id)))

    @router.get("/list")
    async def list_all() -> ListAnswer:
        """Every sandbox that has not ended."""
        living = [sandbox for sandbox in sandboxes.all() if not sandbox.state.ended]
        return ListAnswer(runtimes=[_answer(s) for s in living], total=len(living))

    return router


def _turning(sandboxes: Sandboxes, config: Config) -> APIRouter:
    router = APIRouter()

    @router.post("/pause", responses=UNFIT)
    async def pause(body: RuntimeBody) -> RuntimeAnswer:
        """Its processes stand still; url and key stay. One that is starting is waited for."""
        sandbox = _found(sandboxes.by_runtime(body.runtime_id))
        await _settled([sandbox], config.runtime.start_seconds)
        _check_running(sandbox)
        await sandboxes.pause(sandbox)
        return _answer(sandbox)

    @router.post("/resume", responses=UNFIT)
    async def resume(body: RuntimeBody) -> RuntimeAnswer:
        sandbox = _found(sandboxes.by_runtime(body.runtime_id))
        _check_running(sandbox)
        await sandboxes.resume(sandbox)
        return _answer(sandbox)

    @router.post("/stop", responses=UNKNOWN)
    async def stop(body: RuntimeBody) -> RuntimeAnswer:
        sandbox = _found(sandboxes.by_runtime(body.runtime_id))
        sandboxes.stop(sandbox, "stopped by its client", Cause.CLIENT)
        return _answer(sandbox)

    @router.post("/snapshot", responses=UNFIT)
    async def snapshot(body: SnapshotBody) -> SnapshotAnswer:
        image = _own_image(body.image, config)
        sandbox = _found(sandboxes.by_runtime(body.runtime_id))
        _check_running(sandbox)
        with sandbox.in_use():
            await sandboxes.backend.snapshot(sandbox.container, image)
        return SnapshotAnswer(image=image)

    return router


def _building(sandboxes: Sandboxes, builds: Builds, config: Config) -> APIRouter:
    router = APIRouter()

    @router.get("/registry_prefix")
    async def registry_prefix() -> PrefixAnswer:
        return PrefixAnswer(registry_prefix=config.runtime.registry_prefix)

    @router.get("/image_exists")
    async def image_exists(image: Annotated[ImageName, Query()]) -> ImageAnswer:
        found = await sandboxes.backend.image(image)
        if found is None:
            return ImageAnswer(exists=False, image=None)
        created = datetime.fromtimestamp(found.created, UTC).isoformat()
        details = ImageDetails(upload_time=created, image_size_bytes=found.size_bytes)
        return ImageAnswer(exists=True, image=details)

    @router.post("/build")
    async def build(
        context: UploadFile,
        target_image: Annotated[str, Form()],
        tags: Annotated[list[str], Form(max_length=TAGS)] = [],  # noqa: B006 - FastAPI copies it
    ) -> BuildAnswer:
        """Build `target_image` from `context`: base64 of a tar.gz with a Dockerfile."""
        images = [_own_image(name, config) for name in (target_image, *tags)]
        try:
            begun = await builds.start(context.file, images)
        except TaskError as error:
            raise HTTPException(422, str(error)) from error
        return BuildAnswer(build_id=begun.build_id)

    @router.get("/build_status", responses=UNKNOWN)
    async def build_status(build_id: str) -> BuildStatusAnswer:
        found = builds.get(build_id)
        if found is None:
            raise HTTPException(404, "no such build; one does not outlive the server")
        return _build_answer(found)

    return router


def _watching(metrics: Metrics) -> APIRouter:
    router = APIRouter()

    @router.get(
        "/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}}
    )
    async def text() -> Response:
        """Prometheus' text format."""
        return Response(metrics.text(), media_type=PROMETHEUS_TEXT)

    return router


def _request(body: StartBody, config: Config) -> SandboxRequest:
    limits = config.sandbox.model_dump() | body.resources.model_dump(exclude_none=True)
    if body.resource_factor != 1:
        limits["memory_mib"] = max(int(limits["memory_mib"] * body.resource_factor), 1)
        limits["cpus"] *= body.resource_factor
    return SandboxRequest(
        session_id=body.session_id,
        image=body.image,
        workdir=body.working_dir,
        environment=body.environment,
        limits=Limits(**limits),
        lifetime_seconds=body.lifetime_seconds or config.runtime.lifetime_seconds,
        idle_seconds=body.idle_seconds or config.runtime.idle_seconds,
        lease_seconds=body.lease_seconds or config.runtime.lease_seconds,
    )


def _found(sandbox: Sandbox | None) -> Sandbox:
    if sandbox is None:
        raise HTTPException(404, "no such sandbox")
    return sandbox


def _check_running(sandbox: Sandbox) -> None:
    if not sandbox.state.running:
        raise HTTPException(409, sandbox.reason or f"the sandbox is {sandbox.state}")


def _own_image(name: str, config: Config) -> str:
    try:
        return check_image_name(name, config.runtime.registry_prefix)
    except ValueError as error:
        raise HTTPException(422, f"{name} {error}") from error


async def _settled(sandboxes: Iterable[Sandbox], seconds: float) -> None:
    """Return when none of them is pending any more, at the latest after `seconds`."""
    deadline = time.monotonic() + seconds
    for sandbox in sandboxes:
        left = deadline - time.monotonic()
        if not sandbox.settled.is_set() and left > 0:
            waiter = asyncio.create_task(sandbox.settled.wait())
            await asyncio.wait([waiter], timeout=left)
            waiter.cancel()


def _answer(sandbox: Sandbox) -> RuntimeAnswer:
    status, pod_status = STATUS[sandbox.state]
    return RuntimeAnswer(
        runtime_id=sandbox.runtime_id,
        session_id=sandbox.request.session_id,
        image=sandbox.request.image,
        url=sandbox.url,
        session_api_key=sandbox.key,
        status=status,
        pod_status=pod_status,
        pod_logs=sandbox.reason,
        failure=sandbox.failure,
        lease_seconds=sandbox.request.lease_seconds,
        work_hosts={},
        restart_count=0,
        restart_reasons=[],
    )


def _build_answer(build: Build) -> BuildStatusAnswer:
    done = build.state == "SUCCESS"
    return BuildStatusAnswer(
        build_id=build.build_id,
        status=build.state.value,
        image=build.images[0] if done else None,
        error=build.error,
    )
