"""What is said at the server's own port: OpenHands' remote-runtime protocol and our additions."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

HOLD_SECONDS = 20.0  # how long /start and /sessions wait for a pending sandbox
BATCH = 256  # sandboxes in one call
PodStatus = Literal["pending", "ready", "not found", "failed"]
Status = Literal["starting", "running", "paused", "stopped", "error"]


def _plain(text: str) -> str:
    if "\0" in text:
        raise ValueError("can't hold NUL")
    return text


def _variables(environment: dict[str, str]) -> dict[str, str]:
    for name in environment:
        if not name or "=" in name:
            raise ValueError("the name of a variable is not empty and has no '='")
    return environment


Plain = Annotated[str, AfterValidator(_plain)]
SessionId = Annotated[str, Field(min_length=1, max_length=200), AfterValidator(_plain)]
ImageName = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_plain)]


class Body(BaseModel):
    """What a client sends: its numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class Resources(Body):
    """Limits of one sandbox; what is left out comes from the server's configuration."""

    memory_mib: int | None = Field(None, gt=0, le=1 << 24)
    cpus: float | None = Field(None, gt=0, le=4096)
    pids: int | None = Field(None, gt=0, le=1 << 20)
    disk_mib: int | None = Field(None, gt=0, le=1 << 24)
    output_bytes: int | None = Field(None, gt=0, le=1 << 30)
    network: bool | None = None


class StartBody(Body):
    """/start. `command` and the keys that are not listed are accepted and ignored: sandboxes run
    no server of their own."""

    image: ImageName
    session_id: SessionId
    command: str | list[str] | None = None
    working_dir: Plain = "/"
    environment: Annotated[dict[Plain, Plain], AfterValidator(_variables)] = {}
    resource_factor: float = Field(1, gt=0, le=8)
    resources: Resources = Resources()
    lifetime_seconds: float | None = Field(None, gt=0)
    idle_seconds: float | None = Field(None, gt=0)
    lease_seconds: float | None = Field(None, gt=0)
    hold_seconds: float = Field(HOLD_SECONDS, ge=0, le=60)


class StartBatchBody(Body):
    """/start_batch: the answers come together, when all are settled or after `hold_seconds`."""

    starts: list[StartBody] = Field(max_length=BATCH)
    hold_seconds: float = Field(HOLD_SECONDS, ge=0, le=60)


class RuntimeBody(Body):
    """Names one sandbox."""

    runtime_id: str


class LeaseBody(Body):
    """/lease: proof of life for one or several sandboxes."""

    runtime_id: str | None = None
    runtime_ids: list[str] = Field([], max_length=10_000)


class SnapshotBody(Body):
    """/snapshot: keep the sandbox's files as an image, from which others can be started."""

    runtime_id: str
    image: ImageName


class RuntimeAnswer(BaseModel):
    """One sandbox.

    `status` and `pod_status` are two fields with two vocabularies: a client waits while the latter
    is `pending` and gives up when it is `failed`. `pod_logs` says why it has ended or failed;
    `failure` is `image` when the task names an image that does not exist, `sandbox` when it was
    ended by what ran in it, else `infra`.
    """

    runtime_id: str
    session_id: str
    image: str
    url: str
    session_api_key: str
    status: Status
    pod_status: PodStatus
    pod_logs: str
    failure: str | None
    lease_seconds: float | None
    work_hosts: dict[str, int]
    restart_count: int
    restart_reasons: list[str]


class ListAnswer(BaseModel):
    runtimes: list[RuntimeAnswer]
    total: int


class LeaseAnswer(BaseModel):
    """`unknown` have ended, or were never there."""

    renewed: list[str]
    unknown: list[str]


class HealthAnswer(BaseModel):
    """`free` places: negative when starts are queued beyond the places. `nonce`: of this start of
    the server, as in its rendezvous file."""

    status: Literal["ok"]
    nonce: str
    sandboxes: dict[str, int]
    free: int


class PrefixAnswer(BaseModel):
    registry_prefix: str


class ImageDetails(BaseModel):
    """`upload_time` in ISO 8601."""

    upload_time: str
    image_size_bytes: int


class ImageAnswer(BaseModel):
    exists: bool
    image: ImageDetails | None


class SnapshotAnswer(BaseModel):
    image: str


class BuildAnswer(BaseModel):
    build_id: str


class BuildStatusAnswer(BaseModel):
    """`error` holds the builder's words when `status` is FAILURE."""

    build_id: str
    status: Literal["QUEUED", "WORKING", "SUCCESS", "FAILURE", "CANCELLED"]
    image: str | None
    error: str | None
