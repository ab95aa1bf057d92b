"""OpenHands' own clients, unmodified, against the real server and both back ends.

The V0 client is no longer published; its calls are sent as it sent them.
"""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import tarfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from skiff.config import Config
from skiff.podman import check_podman, run_podman

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # else its import asks the network
from openhands.sdk.git.models import GitChangeStatus
from openhands.workspace import APIRemoteWorkspace

SECONDS = 60.0
UPLOAD_BYTES = 20 << 20
REPOSITORY = (
    "mkdir /tmp/repo && cd /tmp/repo && git init -q && git config user.name a &&"
    "git config user.email a@b && echo old >kept && echo old >gone && git add . &&"
    "git commit -qm 1 && echo new >kept && rm gone && echo new >added"
)


@pytest.fixture
def configured(
    backend: str, images_of: Callable[[str], dict[str, str]], runtime_config: Callable[..., Config]
) -> Callable[[int], Config]:
    """`configured(port)`: a server of that back end."""
    runtime: dict[str, Any] = {"backend": backend}
    if backend == "apptainer":
        runtime["sif_folder"] = str(Path(images_of(backend)["debian"]).parent)

    def config(port: int) -> Config:
        return runtime_config(
            runtime=runtime | {"port": port}, sandbox={"memory_mib": 256, "disk_mib": 512}
        )

    return config


def test_api_remote_workspace(
    backend: str,
    configured: Callable[[int], Config],
    images_of: Callable[[str], dict[str, str]],
    launch_server: Callable[[Config], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    server = launch_server(configured(0))
    session_id = f"stock-{uuid.uuid4().hex}"

    def attach(**options: Any) -> APIRemoteWorkspace:
        return APIRemoteWorkspace(
            runtime_api_url=server.url,
            runtime_api_key=server.key,
            server_image=images_of(backend)["debian"],
            session_id=session_id,
            working_dir="/tmp",
            **options,
        )

    workspace = attach()
    place, key = workspace.host, workspace.api_key
    done = workspace.execute_command("echo out; echo err >&2; exit 3")
    assert (done.exit_code, done.stdout, done.stderr) == (3, "out\n", "err\n")
    assert workspace.execute_command("sleep 60", timeout=1).timeout_occurred

    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(os.urandom(UPLOAD_BYTES))
    assert workspace.file_upload(local, "/tmp/up/file").success
    assert workspace.file_download("/tmp/up/file", back).success
    assert back.read_bytes() == local.read_bytes()

    made = workspace.execute_command(REPOSITORY)
    assert made.exit_code == 0, made.stderr
    changes = {str(change.path): change.status for change in workspace.git_changes("/tmp/repo")}
    assert changes == {
        "kept": GitChangeStatus.UPDATED,
        "gone": GitChangeStatus.DELETED,
        "added": GitChangeStatus.ADDED,
    }
    diff = workspace.git_diff("/tmp/repo/kept")
    assert (diff.original, diff.modified) == ("old\n", "new\n")

    workspace.execute_command("(while :; do date +%s%N >/tmp/clock; sleep 0.05; done) >/dev/null &")
    workspace.pause()
    session = httpx.get(
        f"{server.url}/sessions/{session_id}", headers={"X-API-Key": server.key}, trust_env=False
    ).json()
    assert (session["status"], session["url"]) == ("paused", place)
    assert workspace.execute_command("true").exit_code == -1
    workspace.resume()
    ticks = workspace.execute_command("cat /tmp/clock; sleep 0.5; cat /tmp/clock").stdout.split()
    assert len(set(ticks)) == 2, "the background job goes on"

    assert server.end(signal.SIGKILL) == -signal.SIGKILL
    with pytest.raises(httpx.ConnectError):
        workspace.execute_command("true")
    server = launch_server(configured(server.place["port"]))
    assert workspace.execute_command("cat /tmp/repo/kept").stdout == "new\n"

    again = attach(keep_alive=True)
    assert (again.host, again.api_key) == (place, key)
    assert again.execute_command("cat /tmp/repo/added").stdout == "new\n"
    again.pause()
    resumed = attach(keep_alive=True)
    assert resumed.host == place
    assert resumed.execute_command("cat /tmp/repo/added").stdout == "new\n"

    workspace.cleanup()
    stopped = httpx.get(
        f"{server.url}/sessions/{session_id}", headers={"X-API-Key": server.key}, trust_env=False
    )
    assert stopped.json()["status"] == "stopped"
    with pytest.raises(httpx.HTTPError):
        resumed.execute_command("true")
    assert server.end() == 0, server.log.read_text()


def test_stock_client_learns_why(runtime_server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ValueError, match="no image localhost/skiff/none:1"):
        APIRemoteWorkspace(
            runtime_api_url=runtime_server.url,
            runtime_api_key=runtime_server.key,
            server_image="localhost/skiff/none:1",
        )


def _remove_images(*names: str) -> None:
    """While the server removes a container of theirs podman refuses that; then there is none."""
    deadline = time.monotonic() + SECONDS
    while (done := run_podman(["image", "rm", "--force", *names])).returncode != 0:
        assert time.monotonic() < deadline, done.stderr
        time.sleep(0.2)


def test_v0_client(runtime_server: Any, busybox_image: str) -> None:
    """Build an image, start it, act, pause, resume and stop, as `RemoteRuntime` did."""
    control = httpx.Client(
        base_url=runtime_server.url,
        headers={"X-API-Key": runtime_server.key},
        timeout=SECONDS,
        trust_env=False,
    )
    with control:
        prefix = control.get("/registry_prefix").json()["registry_prefix"]
        image, tag = (f"{prefix}/runtime:v0-{uuid.uuid4().hex}" for _ in range(2))
        assert control.get("/image_exists", params={"image": image}).json() == {
            "exists": False,
            "image": None,
        }
        try:
            _v0_build(
                control,
                image,
                tag,
                f"FROM {busybox_image}\nWORKDIR /openhands/code\nCOPY word /word\n",
            )
            for name in (image, tag):
                found = control.get("/image_exists", params={"image": name}).json()
                assert found["exists"]
                assert found["image"]["image_size_bytes"] > 500_000
                assert found["image"]["upload_time"].startswith("20")
            _v0_session(control, image)
        finally:
            _remove_images(image, tag)


def _v0_build(control: httpx.Client, image: str, tag: str, dockerfile: str) -> None:
    packed = _context({"Dockerfile": dockerfile, "word": "built\n"})
    begun = control.post(
        "/build",
        files=[
            ("context", ("context.tar.gz", base64.b64encode(packed))),
            ("target_image", (None, image)),
            ("tags", (None, tag)),
        ],
    )
    assert begun.status_code == 200, begun.text
    status = _build_ends(control, begun.json()["build_id"])
    assert (status["status"], status["image"]) == ("SUCCESS", image), status


def _v0_session(control: httpx.Client, image: str) -> None:
    started = control.post(
        "/start",
        json={
            "image": image,
            "command": ["/openhands/micromamba/bin/micromamba", "run", "-n", "openhands"],
            "working_dir": "/openhands/code/",
            "environment": {"A": "b"},
            "session_id": f"v0-{uuid.uuid4().hex}",
            "resource_factor": 1,
        },
    ).json()
    assert started["work_hosts"] == {}
    body = {"runtime_id": started["runtime_id"]}
    polled = control.get(f"/runtime/{started['runtime_id']}").json()
    assert (polled["runtime_id"], polled["pod_status"]) == (started["runtime_id"], "ready")
    assert (polled["restart_count"], polled["restart_reasons"]) == (0, [])
    action_server = httpx.Client(
        base_url=started["url"],
        headers={"X-Session-API-Key": started["session_api_key"]},
        timeout=SECONDS,
        trust_env=False,
    )
    with action_server:
        assert action_server.get("/alive").is_success

        def act(command: str) -> dict[str, Any]:
            action = {"action": "run", "args": {"command": command, "blocking": False}}
            answer = action_server.post("/execute_action", json={"action": action})
            observation: dict[str, Any] = answer.json()
            return observation

        done = act("cat /word; echo $A; cd /tmp; exit_code() { return 3; }; exit_code")
        assert done["content"].split() == ["built", "b"]
        assert done["extras"]["metadata"]["exit_code"] == 3
        assert act("pwd")["content"].strip() == "/tmp"
        assert control.post("/pause", json=body).json()["status"] == "paused"
        assert control.post("/resume", json=body).json()["url"] == started["url"]
        assert act("pwd")["content"].strip() == "/tmp"
        assert control.post("/stop", json=body).is_success


def _build_ends(control: httpx.Client, build_id: str) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        status: dict[str, Any] = control.get("/build_status", params={"build_id": build_id}).json()
        if status["status"] not in ("QUEUED", "WORKING"):
            return status
        time.sleep(0.1)
    raise AssertionError("the build does not end")


def _context(files: dict[str, str]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name, text in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    return packed.getvalue()


def test_build_stands_back(runtime_server: Any, debian_image: str) -> None:
    """One CPU and the lowest priority: the sandboxes come first."""
    dockerfile = (
        f"FROM {debian_image}\n"
        "RUN echo priority $(nice), $(grep Cpus_allowed_list /proc/self/status) >&2; exit 1\n"
    )
    with httpx.Client(
        base_url=runtime_server.url, headers={"X-API-Key": runtime_server.key}, trust_env=False
    ) as control:
        begun = control.post(
            "/build",
            data={"target_image": "localhost/skiff/test-never:1"},
            files={"context": ("c", base64.b64encode(_context({"Dockerfile": dockerfile})))},
        )
        words = _build_ends(control, begun.json()["build_id"])["error"]
        last = max(os.sched_getaffinity(0))
        priority = min(19, os.nice(0) + 19)
        assert f"priority {priority}, Cpus_allowed_list: {last}\n" in words


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"Dockerfile": "FROM localhost/skiff/none:1\n"}, "localhost/skiff/none:1"),
        ({"readme": "x"}, "no Dockerfile"),
        ({"Dockerfile": "FROM scratch\n", "../escape": "x"}, "outside"),
    ],
)
def test_build_that_fails(runtime_server: Any, files: dict[str, str], words: str) -> None:
    with httpx.Client(
        base_url=runtime_server.url, headers={"X-API-Key": runtime_server.key}, trust_env=False
    ) as control:
        begun = control.post(
            "/build",
            data={"target_image": "localhost/skiff/test-never:1"},
            files={"context": ("context.tar.gz", base64.b64encode(_context(files)))},
        )
        status = _build_ends(control, begun.json()["build_id"])
        assert status["status"] == "FAILURE"
        assert words in status["error"]
        assert status["image"] is None


@pytest.mark.parametrize(
    ("image", "context"),
    [
        ("docker.io/library/debian:1", b""),
        ("localhost/", b""),
        ("localhost/a b", b""),
        ("--tag=localhost/a", b""),
        ("localhost/skiff/never:1", b"no base64 at all!"),
        ("localhost/skiff/never:1", b"abc"),
    ],
)
def test_build_that_is_refused(runtime_server: Any, image: str, context: bytes) -> None:
    with httpx.Client(
        base_url=runtime_server.url, headers={"X-API-Key": runtime_server.key}, trust_env=False
    ) as control:
        answer = control.post(
            "/build", data={"target_image": image}, files={"context": ("c", context)}
        )
        assert answer.status_code == 422, answer.text


async def test_snapshot_is_started(busybox_image: str, opened: Any) -> None:
    """A fork: what the first one has written is there in the second, and no later word of it."""
    name = f"localhost/skiff/test-fork:{uuid.uuid4().hex}"
    try:
        async with opened(busybox_image) as first:
            await first.write("/root/word", b"before")
            await first.snapshot(name)
            await first.write("/root/word", b"after")
            async with opened(name) as second:
                assert await second.read("/root/word") == b"before"
    finally:
        await _unused(name)
        check_podman(["image", "rm", "--force", name])


async def _unused(image: str) -> None:
    """Wait until the containers of the image are gone; a stop does not wait for that."""
    async with asyncio.timeout(30):
        while check_podman(["ps", "--all", "--quiet", "--filter", f"ancestor={image}"]):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
