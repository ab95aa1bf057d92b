"""Several servers, one folder: starts are spread, and a node that is lost takes only its own."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff.config import Config
from skiff.errors import ConfigError, InfraError, TaskError
from skiff.sandbox import RuntimeClient, Sandbox, SandboxSpec
from skiff.sandbox.client import FOLDER_VARIABLE, KEY_FILE_VARIABLE
from skiff.sandbox.nodes import Nodes, published

SECONDS = 60.0
Launch = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def launch(
    tmp_path: Path,
    runtime_config: Callable[..., Config],
    server_arguments: Callable[[Path, Config], list[str]],
) -> Iterator[Launch]:
    """`launch(name)`: the server of that node; they share the folder `nodes` and the key."""
    processes = []
    (tmp_path / "nodes").mkdir()

    def begin(name: str) -> subprocess.Popen[bytes]:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        arguments = server_arguments(folder, runtime_config())
        arguments[arguments.index("--rendezvous") + 1] = str(_file(tmp_path, name))
        arguments[arguments.index("--key-file") + 1] = str(tmp_path / "key")
        with (folder / "server.log").open("wb") as log:
            processes.append(subprocess.Popen([sys.executable, *arguments], stdout=log, stderr=log))
        deadline = time.monotonic() + SECONDS
        while not _published_by(_file(tmp_path, name), processes[-1].pid):
            assert time.monotonic() < deadline, (folder / "server.log").read_text()
            time.sleep(0.05)
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.terminate()
            assert process.wait(timeout=SECONDS) == 0


def _file(folder: Path, name: str) -> Path:
    return folder / "nodes" / f"runtime-{name}.json"


def _published_by(path: Path, pid: int) -> bool:
    return path.exists() and json.loads(path.read_text())["pid"] == pid


@pytest.fixture
def make(runtime_config: Callable[..., Config], debian_image: str) -> Callable[[], SandboxSpec]:
    """`make()`: another small sandbox."""
    config = runtime_config(sandbox={"memory_mib": 128, "disk_mib": 128})
    return lambda: SandboxSpec.from_config(config, image=debian_image)


def _sandboxes(results: list[Any]) -> list[Sandbox]:
    assert all(isinstance(result, Sandbox) for result in results), results
    return results


async def test_a_lost_node_takes_only_its_own(
    launch: Launch,
    make: Callable[[], SandboxSpec],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    servers = {name: launch(name) for name in ("a", "b")}
    urls = {name: json.loads(_file(tmp_path, name).read_text())["url"] for name in servers}
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "nodes"))
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(tmp_path / "key"))
    async with RuntimeClient.from_env() as client:
        started = _sandboxes(await client.start_batch([make() for _ in range(6)]))
        assert Counter(sandbox.server for sandbox in started) == dict.fromkeys(urls.values(), 3)
        assert (await client.health())["sandboxes"]["ready"] == 6
        waiting = [asyncio.create_task(s.run("sleep 2; echo on", timeout=30)) for s in started]
        await asyncio.sleep(0.5)
        servers["a"].kill()
        for sandbox, result in zip(
            started, await asyncio.gather(*waiting, return_exceptions=True), strict=True
        ):
            if sandbox.server == urls["a"]:
                assert isinstance(result, InfraError)
            else:
                assert not isinstance(result, BaseException)
                assert result.text == "on\n"
        assert (await client.health())["sandboxes"]["ready"] == 3
        for _ in range(3):  # whatever the last look at the nodes has said
            async with client.sandbox(make()) as sandbox:
                assert sandbox.server == urls["b"]
        servers["c"] = launch("c")
        later = _sandboxes(await client.start_batch([make() for _ in range(4)]))
        assert any(sandbox.server == _url(tmp_path, "c") for sandbox in later)
        launch("a")  # takes its sandboxes over and ends them with its own end


def _url(folder: Path, name: str) -> str:
    return str(json.loads(_file(folder, name).read_text())["url"])


async def test_reattach(runtime_client: RuntimeClient, make: Callable[[], SandboxSpec]) -> None:
    spec = make()
    async with runtime_client.sandbox(spec) as sandbox:
        await sandbox.write("/tmp/word", b"kept")
        await sandbox.pause()
        with pytest.raises(InfraError, match="paused"):
            await sandbox.run("true", timeout=SECONDS)
        again = await runtime_client.reattach(spec.session_id)
        await again.resume()
        assert await again.read("/tmp/word") == b"kept"
    with pytest.raises(InfraError, match="stopped by its client"):
        await runtime_client.reattach(spec.session_id)
    with pytest.raises(InfraError, match="no such sandbox"):
        await runtime_client.reattach("never/started")


async def test_batch_with_a_failure(
    runtime_client: RuntimeClient, make: Callable[[], SandboxSpec], sandbox_config: Config
) -> None:
    wrong = SandboxSpec.from_config(sandbox_config, image="localhost/skiff/none:1")
    first, failed, last = await runtime_client.start_batch([make(), wrong, make()])
    assert isinstance(failed, TaskError)
    for sandbox in _sandboxes([first, last]):
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
        await sandbox.stop()


async def test_cancelled_batch_leaves_nothing(
    runtime_client: RuntimeClient, make: Callable[[], SandboxSpec]
) -> None:
    specs = [make() for _ in range(32)]
    start = asyncio.create_task(runtime_client.start_batch(specs))
    while not (await runtime_client.health())["sandboxes"]["ready"]:
        assert not start.done()
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    for spec in specs:
        with pytest.raises(InfraError, match=r"stopped by its client|no such sandbox"):
            await runtime_client.reattach(spec.session_id)


async def test_starts_outlive_a_killed_server(
    launch_server: Callable[[Config], Any],
    runtime_config: Callable[..., Config],
    make: Callable[[], SandboxSpec],
) -> None:
    server = launch_server(runtime_config())
    async with RuntimeClient([server.url], server.key) as client:

        async def kill_and_start_again() -> None:
            deadline = time.monotonic() + SECONDS
            while not (await client.health())["sandboxes"]["ready"]:
                assert time.monotonic() < deadline
            server.end(signal.SIGKILL)
            again = runtime_config(runtime={"port": server.place["port"]})
            await asyncio.to_thread(launch_server, again)

        started, _ = await asyncio.gather(
            client.start_batch([make() for _ in range(24)]), kill_and_start_again()
        )
        for sandbox in _sandboxes(started):
            assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_lease(runtime_server: Any, debian_image: str, sandbox_config: Config) -> None:
    """It lasts as long as its client, and no longer."""
    limits = sandbox_config.sandbox.model_dump()
    spec = SandboxSpec(
        image=debian_image, lifetime_seconds=600, idle_seconds=600, lease_seconds=2, **limits
    )
    async with RuntimeClient([runtime_server.url], runtime_server.key) as client:
        sandbox = await client.start(spec)
        await asyncio.sleep(3.5)
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"
    async with RuntimeClient([runtime_server.url], runtime_server.key) as other:
        deadline = time.monotonic() + SECONDS
        while (await other.health())["sandboxes"]["ready"]:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)
        with pytest.raises(InfraError, match="lease of 2 s has expired"):
            await other.reattach(spec.session_id)


async def test_folder_without_servers(tmp_path: Path, make: Callable[[], SandboxSpec]) -> None:
    (tmp_path / "key").write_text("k")
    (tmp_path / "key").chmod(0o600)
    with pytest.raises(ConfigError, match="no such folder"):
        RuntimeClient.from_folder(tmp_path / "none", tmp_path / "key")
    async with RuntimeClient.from_folder(tmp_path, tmp_path / "key", start_seconds=0.5) as client:
        with pytest.raises(InfraError, match="no runtime server has published itself"):
            await client.start(make())
    (tmp_path / "runtime-x.json").write_text("{")
    with pytest.raises(InfraError, match=r"runtime-x\.json"):
        published(tmp_path)


async def test_choice() -> None:
    """The emptier of two; own starts count at once; what does not answer is left alone."""
    places = {"a": 10, "b": 2, "c": 0}

    async def free(url: str) -> int:
        if url == "c":
            raise InfraError("gone")
        return places[url]

    nodes = Nodes(lambda: list(places), free)
    chosen = Counter([await nodes.choose() for _ in range(12)])
    assert chosen == {"a": 10, "b": 2}
    assert await nodes.choose(without=["a"]) == "b"
    nodes.lost("b")
    assert {await nodes.choose() for _ in range(5)} == {"a"}
    assert await nodes.choose(without=["a", "b", "c"]) is None
