"""The client against a real server: one clear error for each thing that can go wrong."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from skiff.errors import ConfigError, InfraError, TaskError
from skiff.podman import check_podman
from skiff.sandbox import RuntimeClient, SandboxSpec
from skiff.sandbox.client import KEY_FILE_VARIABLE, URL_VARIABLE

SECONDS = 60.0


@pytest.fixture
def spec(sandbox_config: Any, debian_image: str) -> SandboxSpec:
    return SandboxSpec.from_config(sandbox_config, image=debian_image)


def test_spec_takes_the_limits_of_the_config(runtime_config: Any) -> None:
    config = runtime_config(sandbox={"memory_mib": 77}, runtime={"idle_seconds": 99})
    spec = SandboxSpec.from_config(config, image="i", workdir="/w", env={"A": "b"})
    assert (spec.memory_mib, spec.idle_seconds, spec.workdir) == (77, 99, "/w")
    assert spec.network is False
    other = SandboxSpec.from_config(config, image="i")
    assert spec.session_id != other.session_id


async def test_from_environment(
    runtime_server: Any, spec: SandboxSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, f"{runtime_server.url},{runtime_server.url}/")
    monkeypatch.setenv(KEY_FILE_VARIABLE, runtime_server.place["key_file"])
    monkeypatch.setenv("http_proxy", "http://192.0.2.1:9")
    async with RuntimeClient.from_env() as client, client.sandbox(spec) as sandbox:
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"


def test_environment_that_is_incomplete(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(URL_VARIABLE, raising=False)
    monkeypatch.delenv(KEY_FILE_VARIABLE, raising=False)
    with pytest.raises(ConfigError, match=KEY_FILE_VARIABLE):
        RuntimeClient.from_env()
    key = tmp_path / "key"
    key.write_text("k")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key))
    with pytest.raises(ConfigError, match="chmod 600"):
        RuntimeClient.from_env()
    key.chmod(0o600)
    with pytest.raises(ConfigError, match=URL_VARIABLE):
        RuntimeClient.from_env()


async def test_wrong_key(runtime_server: Any, spec: SandboxSpec) -> None:
    async with RuntimeClient([runtime_server.url], "wrong") as client:
        with pytest.raises(ConfigError, match="refuses the key"):
            await client.start(spec)


async def test_no_server(spec: SandboxSpec) -> None:
    async with RuntimeClient(["http://127.0.0.1:9"], "key") as client:
        with pytest.raises(InfraError, match=r"http://127\.0\.0\.1:9"):
            await client.start(spec)


async def test_image_that_does_not_exist(
    runtime_client: RuntimeClient, sandbox_config: Any
) -> None:
    spec = SandboxSpec.from_config(sandbox_config, image="localhost/skiff/none:1")
    with pytest.raises(TaskError, match="localhost/skiff/none:1 does not exist"):
        await runtime_client.start(spec)


async def test_image_that_cannot_run(
    runtime_client: RuntimeClient, sandbox_config: Any, tmp_path: Path
) -> None:
    name = "localhost/skiff/test-no-shell:1"
    (tmp_path / "Dockerfile").write_text("FROM scratch\nCOPY Dockerfile /\n")
    check_podman(["build", "--quiet", f"--tag={name}", str(tmp_path)])
    try:
        with pytest.raises(InfraError, match='"sh": executable file not found'):
            await runtime_client.start(SandboxSpec.from_config(sandbox_config, image=name))
    finally:
        check_podman(["image", "rm", "--force", name])


async def test_container_killed_behind_the_servers_back(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        waiting = asyncio.create_task(sandbox.run("sleep 1000", timeout=900))
        await asyncio.sleep(0.3)  # the command has begun, or fails as one that is queued
        check_podman(["kill", sandbox.runtime_id])
        with pytest.raises(InfraError, match=f"{sandbox.session_id}.*has ended"):
            await waiting
        for call in (
            sandbox.run("true", timeout=SECONDS),
            sandbox.read("/etc/passwd"),
            sandbox.write("/x", b""),
        ):
            with pytest.raises(InfraError, match="has ended"):
                await call


async def test_calls_after_stop(runtime_client: RuntimeClient, spec: SandboxSpec) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        pass
    with pytest.raises(InfraError, match="stopped by its client"):
        await sandbox.run("true", timeout=SECONDS)
    await sandbox.stop()


async def test_cancelled_start_leaves_nothing(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    start = asyncio.create_task(runtime_client.start(spec))
    deadline = asyncio.get_running_loop().time() + SECONDS
    while not await running(runtime_client):
        assert asyncio.get_running_loop().time() < deadline
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    await nothing_runs(runtime_client)


async def test_cancelled_use_stops_the_sandbox(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    inside = asyncio.Event()

    async def use() -> None:
        async with runtime_client.sandbox(spec) as sandbox:
            inside.set()
            await sandbox.run("sleep 1000", timeout=900)

    using = asyncio.create_task(use())
    await inside.wait()
    using.cancel()
    with pytest.raises(asyncio.CancelledError):
        await using
    await nothing_runs(runtime_client)


async def running(client: RuntimeClient) -> int:
    """How many sandboxes the server has, in whatever state."""
    counts = (await client.health())["sandboxes"]
    return sum(counts[state] for state in ("queued", "starting", "ready", "paused"))


async def nothing_runs(client: RuntimeClient) -> None:
    deadline = asyncio.get_running_loop().time() + SECONDS
    while await running(client):
        assert asyncio.get_running_loop().time() < deadline
