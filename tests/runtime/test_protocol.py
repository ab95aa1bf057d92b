"""The wire protocol, as OpenHands' clients speak it, against the real server."""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from openhands.sdk.git.models import GitChangeStatus
from openhands.sdk.workspace import RemoteWorkspace

SECONDS = 60.0


@pytest.fixture
async def control(runtime_server: Any) -> AsyncIterator[httpx.AsyncClient]:
    """The server's own port, with the right key."""
    headers = {"X-API-Key": runtime_server.key}
    async with httpx.AsyncClient(
        base_url=runtime_server.url, headers=headers, timeout=SECONDS, trust_env=False
    ) as client:
        yield client


@pytest.fixture
async def started(control: httpx.AsyncClient, debian_image: str) -> AsyncIterator[dict[str, Any]]:
    """The answer to a plain /start."""
    body = {"image": debian_image, "session_id": uuid.uuid4().hex, "working_dir": "/tmp"}
    answer = (await control.post("/start", json=body)).json()
    assert answer["pod_status"] == "ready", answer
    yield answer
    await control.post("/stop", json={"runtime_id": answer["runtime_id"]})


@pytest.fixture
async def port(started: dict[str, Any]) -> AsyncIterator[httpx.AsyncClient]:
    """The sandbox's port, with its key."""
    async with httpx.AsyncClient(
        base_url=started["url"],
        headers={"X-Session-API-Key": started["session_api_key"]},
        timeout=SECONDS,
        trust_env=False,
    ) as client:
        yield client


async def test_start_is_idempotent(control: httpx.AsyncClient, started: dict[str, Any]) -> None:
    for command in ("agent --port 60000", ["agent", "--port", "60000"], None):
        again = await control.post(
            "/start",
            json={
                "image": "another",
                "session_id": started["session_id"],
                "command": command,
                "run_as_user": 10001,
                "runtime_class": "sysbox-runc",
            },
        )
        assert again.json() == started


async def test_the_ways_to_find_a_sandbox(
    control: httpx.AsyncClient, started: dict[str, Any]
) -> None:
    assert started["status"] == "running"
    assert started["pod_logs"] == ""
    assert (await control.get(f"/sessions/{started['session_id']}")).json() == started
    assert (await control.get(f"/runtime/{started['runtime_id']}")).json() == started
    listed = (await control.get("/list")).json()
    assert started in listed["runtimes"]
    assert listed["total"] == len(listed["runtimes"])


async def test_stopped_sandbox(control: httpx.AsyncClient, started: dict[str, Any]) -> None:
    stopped = await control.post("/stop", json={"runtime_id": started["runtime_id"]})
    assert stopped.json()["status"] == "stopped"
    found = (await control.get(f"/sessions/{started['session_id']}")).json()
    assert (found["status"], found["pod_status"]) == ("stopped", "not found")
    assert found["pod_logs"] == "stopped by its client"
    again = await control.post("/stop", json={"runtime_id": started["runtime_id"]})
    assert again.is_success
    with pytest.raises(httpx.ConnectError):
        await control.get(f"{started['url']}/health")
    body = {"image": started["image"], "session_id": started["session_id"]}
    fresh = (await control.post("/start", json=body)).json()
    assert fresh["status"] == "running"
    assert fresh["runtime_id"] != started["runtime_id"]
    await control.post("/stop", json={"runtime_id": fresh["runtime_id"]})


async def test_pause_and_resume(control: httpx.AsyncClient, started: dict[str, Any]) -> None:
    body = {"runtime_id": started["runtime_id"]}
    for _ in range(2):
        paused = (await control.post("/pause", json=body)).json()
        assert (paused["status"], paused["pod_status"]) == ("paused", "not found")
        assert {**paused, "status": "running", "pod_status": "ready"} == started
    for _ in range(2):
        assert (await control.post("/resume", json=body)).json() == started
    await control.post("/stop", json=body)
    for call in ("/pause", "/resume"):
        refused = await control.post(call, json=body)
        assert refused.status_code == 409
        assert refused.json()["detail"] == "stopped by its client"


async def test_many_at_once(control: httpx.AsyncClient, debian_image: str) -> None:
    sessions = [uuid.uuid4().hex for _ in range(3)]
    images = [debian_image, "localhost/skiff/none:1", debian_image]
    starts = [
        {"image": image, "session_id": session_id}
        for image, session_id in zip(images, sessions, strict=True)
    ]
    answers = (await control.post("/start_batch", json={"starts": starts})).json()
    assert [answer["session_id"] for answer in answers] == sessions
    assert [answer["pod_status"] for answer in answers] == ["ready", "failed", "ready"]
    found = await control.get("/sessions/batch", params={"ids": ["unknown", *sessions]})
    assert found.json() == answers
    ids = [answer["runtime_id"] for answer in answers]
    lease = await control.post("/lease", json={"runtime_id": ids[0], "runtime_ids": ids[1:]})
    assert lease.json() == {"renewed": [ids[0], ids[2]], "unknown": [ids[1]]}
    for runtime_id in ids:
        await control.post("/stop", json={"runtime_id": runtime_id})


async def test_metrics(
    control: httpx.AsyncClient, port: httpx.AsyncClient, runtime_server: Any
) -> None:
    """Counts move with what happens, and name nobody. Prometheus may send the key its own way."""

    async def metrics() -> dict[str, float]:
        headers = {"Authorization": f"Bearer {runtime_server.key}"}
        async with httpx.AsyncClient(base_url=runtime_server.url, trust_env=False) as scraper:
            assert (await scraper.get("/metrics")).status_code == 401
            assert (await scraper.get("/list", headers=headers)).status_code == 401
            text = (await scraper.get("/metrics", headers=headers)).text
        samples = (line.rpartition(" ") for line in text.splitlines() if line[0] != "#")
        return {name: float(value) for name, _, value in samples}

    before = await metrics()
    assert before['skiff_sandboxes{state="ready"}'] >= 1
    assert before["skiff_places_free"] < before["skiff_places"]
    await port.post("/skiff/run", json={"command": "exit 3"})
    body = {"image": "localhost/skiff/none:1", "session_id": uuid.uuid4().hex}
    await control.post("/start", json=body)
    after = await metrics()
    for name in (
        'skiff_command_seconds_count{end="failed"}',
        'skiff_start_failures_total{cause="image"}',
        'skiff_ended_total{cause="image"}',
    ):
        assert after[name] == before.get(name, 0) + 1
    assert after["skiff_start_seconds_count"] >= 1
    assert body["session_id"] not in str(after)


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/sessions/x"),
        ("GET", "/sessions/batch"),
        ("GET", "/runtime/x"),
        ("GET", "/list"),
        ("GET", "/registry_prefix"),
        ("GET", "/image_exists"),
        ("GET", "/build_status"),
        ("GET", "/metrics"),
        ("POST", "/start"),
        ("POST", "/start_batch"),
        ("POST", "/lease"),
        ("POST", "/pause"),
        ("POST", "/resume"),
        ("POST", "/snapshot"),
        ("POST", "/build"),
        ("POST", "/stop"),
    ],
)
@pytest.mark.parametrize("key", [None, "", "wrong", "kéy"])
async def test_control_key(runtime_server: Any, method: str, path: str, key: str | None) -> None:
    headers = {} if key is None else {"X-API-Key": key.encode()}
    async with httpx.AsyncClient(base_url=runtime_server.url, trust_env=False) as stranger:
        answer = await stranger.request(method, path, headers=headers, json={"runtime_id": "x"})
        assert answer.status_code == 401


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/skiff/run"),
        ("GET", "/skiff/file"),
        ("PUT", "/skiff/file"),
        ("POST", "/api/bash/start_bash_command"),
        ("POST", "/api/bash/execute_bash_command"),
        ("GET", "/api/bash/bash_events/search"),
        ("POST", "/api/bash/bash_commands/x/stop"),
        ("POST", "/api/file/upload"),
        ("GET", "/api/file/download"),
        ("GET", "/api/git/changes"),
        ("GET", "/api/git/diff"),
    ],
)
async def test_sandbox_key(
    started: dict[str, Any], runtime_server: Any, method: str, path: str
) -> None:
    """Neither no key nor the run's key opens a sandbox."""
    async with httpx.AsyncClient(base_url=started["url"], trust_env=False) as stranger:
        for key in ("", runtime_server.key):
            headers = {"X-Session-API-Key": key, "X-API-Key": key}
            answer = await stranger.request(method, path, headers=headers)
            assert answer.status_code == 401, answer.text


def test_health_needs_no_key(runtime_server: Any, started: dict[str, Any]) -> None:
    for url in (runtime_server.url, started["url"]):
        for path in ("/health", "/alive", "/ready"):
            assert httpx.get(url + path, trust_env=False).json()["status"] == "ok"
    info = httpx.get(f"{started['url']}/server_info", trust_env=False).json()
    assert info["idle_time"] >= 0


async def test_unknown_things(control: httpx.AsyncClient, port: httpx.AsyncClient) -> None:
    assert (await control.get("/sessions/unknown")).status_code == 404
    assert (await control.get("/runtime/unknown")).status_code == 404
    assert (await control.post("/stop", json={"runtime_id": "unknown"})).status_code == 404
    assert (await control.post("/start", json={"image": "x"})).status_code == 422
    assert (await control.get("/build_status", params={"build_id": "x"})).status_code == 404
    image = {"runtime_id": "unknown", "image": "docker.io/library/debian:1"}
    assert (await control.post("/snapshot", json=image)).status_code == 422
    large = {"image": "x", "session_id": "x", "environment": {"A": "b" * 2_000_000}}
    assert (await control.post("/start", json=large)).status_code == 413
    assert (await port.post("/api/bash/bash_commands/unknown/stop")).status_code == 404
    missing = await port.get("/api/file/download", params={"path": "/no/such"})
    assert missing.status_code == 404
    assert (await port.get("/api/file/download", params={"path": "etc"})).status_code == 422
    assert (await port.post("/skiff/run", json={"command": "a\0b"})).status_code == 422
    too_long = {"command": "x" * 2_000_000}
    assert (await port.post("/skiff/run", json=too_long)).status_code == 422


async def test_image_that_does_not_exist(control: httpx.AsyncClient) -> None:
    body = {"image": "localhost/skiff/none:1", "session_id": uuid.uuid4().hex}
    answer = (await control.post("/start", json=body)).json()
    assert (answer["status"], answer["pod_status"]) == ("error", "failed")
    assert "localhost/skiff/none:1" in answer["pod_logs"]
    assert answer["failure"] == "image"


async def test_polled_command(port: httpx.AsyncClient) -> None:
    begun = await port.post(
        "/api/bash/start_bash_command", json={"command": "echo out; echo err >&2; exit 3"}
    )
    wanted = {"command_id__eq": begun.json()["id"], "kind__eq": "BashOutput"}
    event = await _output(port, wanted)
    assert (event["exit_code"], event["stdout"], event["stderr"]) == (3, "out\n", "err\n")
    assert event["infra_error"] is None
    after = wanted | {"order__gt": event["order"]}
    search = await port.get("/api/bash/bash_events/search", params=after)
    assert search.json() == {"items": [], "next_page_id": None}
    every = await port.get("/api/bash/bash_events/search")
    assert [item["kind"] for item in every.json()["items"]] == ["BashCommand", "BashOutput"]


async def test_polled_command_is_stopped(port: httpx.AsyncClient) -> None:
    begun = await port.post(
        "/api/bash/start_bash_command", json={"command": "echo begun; sleep 1000", "timeout": 900}
    )
    stop = await port.post(f"/api/bash/bash_commands/{begun.json()['id']}/stop")
    assert stop.is_success
    event = await _output(port, {"command_id__eq": begun.json()["id"], "kind__eq": "BashOutput"})
    assert event["exit_code"] == -1
    assert (await port.post("/skiff/run", json={"command": "true"})).json()["exit_code"] == 0


async def test_one_shot_command(port: httpx.AsyncClient) -> None:
    answer = await port.post(
        "/api/bash/execute_bash_command", json={"command": "pwd; sleep 1000", "timeout": 0.2}
    )
    assert answer.json()["stdout"] == "/tmp\n"
    assert answer.json()["exit_code"] == -1
    assert "timed out" in answer.json()["stderr"]


async def _output(port: httpx.AsyncClient, wanted: dict[str, Any]) -> dict[str, Any]:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        search = await port.get("/api/bash/bash_events/search", params=wanted)
        if items := search.json()["items"]:
            event: dict[str, Any] = items[0]
            return event
    raise AssertionError("no output")


def test_stock_workspace(
    started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The client of openhands-sdk, unmodified."""
    monkeypatch.setenv("no_proxy", "*")
    workspace = RemoteWorkspace(
        host=started["url"], api_key=started["session_api_key"], working_dir="/tmp"
    )
    done = workspace.execute_command("echo hello; exit 4", cwd="/tmp", timeout=30)
    assert (done.exit_code, done.stdout) == (4, "hello\n")
    assert workspace.execute_command("sleep 60", timeout=1).timeout_occurred
    local, back = tmp_path / "local", tmp_path / "back"
    local.write_bytes(bytes(range(256)) * 4000)
    assert workspace.file_upload(local, "/tmp/up/file").success
    assert workspace.file_download("/tmp/up/file", back).success
    assert back.read_bytes() == local.read_bytes()
    repository = (
        "mkdir repo; cd repo; git init -q; git config user.name a; git config user.email a@b;"
        "echo old > kept; echo old > gone; git add .; git commit -qm 1;"
        "echo new > kept; rm gone; mkdir 'a b'; echo new > 'a b/c'"
    )
    assert workspace.execute_command(repository, cwd="/tmp", timeout=30).exit_code == 0
    changes = {str(change.path): change.status for change in workspace.git_changes("repo")}
    assert changes == {
        "kept": GitChangeStatus.UPDATED,
        "gone": GitChangeStatus.DELETED,
        "a b/c": GitChangeStatus.ADDED,
    }
    diff = workspace.git_diff("repo/kept")
    assert (diff.original, diff.modified) == ("old\n", "new\n")
    assert workspace.git_changes("/etc") == []
