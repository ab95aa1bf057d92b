"""The runtime server beside its peers, in one run: python benchmarks/runtime.py -> runtime.md

Figures (medians unless said otherwise):
- the first command in a sandbox of an image that no container was ever made of, and the same by a
  bare `podman run` of another such image, in turns;
- a trivial command: as the server times it, through Skiff's client, by `podman exec`, and through
  the OpenHands SDK with our server and with a real openhands-agent-server on this host;
- memory that the server and its podman service take for one more sandbox;
- 64 sandboxes asked for at once: how many came, how long it took, memory of the server then;
- LIFECYCLES sandboxes one after another, 8 at a time: what is left of them.

Run it on a machine that does nothing else. Not covered: several nodes, the Apptainer back end.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
from openhands.sdk.workspace import RemoteWorkspace
from rich.progress import track
from skiff.config import Config
from skiff.config.load import dump_toml, parse_config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.podman import build, check_podman, isolation, podman_run_dir
from skiff.runtime.podman_backend import LABEL
from skiff.sandbox import RuntimeClient, SandboxSpec
from skiff.tasks.shell import IMAGE

ROOT = Path(__file__).resolve().parents[1]
TABLE = Path(__file__).with_suffix(".md")
FRESH_IMAGES = 8  # for either side
COMMANDS, EXECS = 300, 30
CROWD = 64
LIFECYCLES, AT_A_TIME = 500, 8
READY_SECONDS = 120.0
MIB = 2**20

Row = tuple[str, str, str, str]  # what, Skiff, peer, ratio or verdict


@dataclass(frozen=True)
class Server:
    """A running runtime server."""

    process: psutil.Process
    folder: Path
    url: str
    key: str

    def client(self) -> RuntimeClient:
        return RuntimeClient([self.url], self.key, start_seconds=600)

    def memory(self) -> int:
        """Bytes (PSS) of the server and its podman service."""
        processes = [self.process, *self.process.children(recursive=True)]
        return sum(process.memory_full_info().pss for process in processes)


def main() -> None:
    ensure_sandbox_image()
    config = _config()
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as folder, _server(Path(folder), config) as server:
        spec = SandboxSpec.from_config(config, image=IMAGE)
        rows += _first_command(server, config)
        rows += _trivial_command(server, spec)
        rows += asyncio.run(_memory(server, config))
        rows += asyncio.run(_crowd(server, config))
        rows += asyncio.run(_lifecycles(server, config))
    TABLE.write_text("\n".join(_table(rows)) + "\n")
    print(TABLE.read_text())


def _first_command(server: Server, config: Config) -> list[Row]:
    """Start of a sandbox of a never-seen image and one command, against `podman run`."""
    tag = secrets.token_hex(4)
    images = [f"localhost/skiff/bench-{tag}:{number}" for number in range(2 * FRESH_IMAGES)]
    with tempfile.TemporaryDirectory() as context:
        for number, image in track(list(enumerate(images)), "images that nobody has seen"):
            Path(context, "Dockerfile").write_text(f"FROM {IMAGE}\nRUN echo {number} > /number\n")
            build(Path(context), image)
    ours, bare = [], []
    try:
        for first, second in track(list(zip(images[::2], images[1::2], strict=True)), "starts"):
            ours.append(asyncio.run(_start_and_run(server, config, first)))
            bare.append(_seconds(lambda image=second: _podman_run(image)))
    finally:
        check_podman(["rmi", "--force", *images])
    mine, theirs = statistics.median(ours), statistics.median(bare)
    return [
        (
            "first command, image never seen",
            f"{mine * 1e3:.0f} ms",
            f"`podman run` {theirs * 1e3:.0f} ms",
            f"{mine / theirs:.2f}",
        )
    ]


async def _start_and_run(server: Server, config: Config, image: str) -> float:
    async with server.client() as client:
        begun = time.perf_counter()
        sandbox = await client.start(SandboxSpec.from_config(config, image=image))
        result = await sandbox.run("true", timeout=30)
        seconds = time.perf_counter() - begun
        assert result.exit_code == 0
        await sandbox.stop()
        return seconds


def _podman_run(image: str) -> None:
    check_podman(["run", "--rm", "--network=none", *isolation().arguments(), image, "true"])


def _trivial_command(server: Server, spec: SandboxSpec) -> list[Row]:
    """`true` in a running sandbox, by every way."""
    inside, through = asyncio.run(_own_commands(server, spec))
    execs = _podman_execs()
    sdk = _sdk_of_ours(server)
    agent_server = _sdk_of_agent_server()
    median = statistics.median
    return [
        ("a command, timed by the server: p50, p99", _milliseconds(inside), "", "goal: p50 5 ms"),
        (
            "a command through Skiff's client: p50, p99",
            _milliseconds(through),
            f"`podman exec` {_milliseconds(execs)}",
            f"{median(through) / median(execs):.3f}",
        ),
        (
            "a command through the OpenHands SDK: p50, p99",
            _milliseconds(sdk),
            f"agent-server {_milliseconds(agent_server)}",
            f"{median(sdk) / median(agent_server):.2f}",
        ),
    ]


async def _own_commands(server: Server, spec: SandboxSpec) -> tuple[list[float], list[float]]:
    inside, through = [], []
    async with server.client() as client, client.sandbox(spec) as sandbox:
        for _ in track(range(COMMANDS), "commands through Skiff's client"):
            begun = time.perf_counter()
            result = await sandbox.run("true", timeout=30)
            through.append(time.perf_counter() - begun)
            inside.append(result.seconds)
    return inside, through


def _podman_execs() -> list[float]:
    start = ["run", "--detach", "--network=none", *isolation().arguments(), IMAGE]
    container = check_podman([*start, "sleep", "3600"]).decode().strip()
    try:
        return [
            _seconds(lambda: check_podman(["exec", container, "true"]))
            for _ in track(range(EXECS), "podman exec")
        ]
    finally:
        check_podman(["rm", "--force", "--time=0", container])


def _sdk_of_ours(server: Server) -> list[float]:
    with httpx.Client(base_url=server.url, headers={"X-API-Key": server.key}) as http:
        body = {"image": IMAGE, "session_id": secrets.token_hex(8), "hold_seconds": 60}
        found = http.post("/start", json=body, timeout=READY_SECONDS).json()
        try:
            return _sdk_commands(found["url"], found["session_api_key"], "SDK, Skiff")
        finally:
            http.post("/stop", json={"runtime_id": found["runtime_id"]})


def _sdk_of_agent_server() -> list[float]:
    """A real agent-server, outside any container: its best case."""
    key, port = secrets.token_urlsafe(16), _free_port()
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"SESSION_API_KEY": key, "OH_ENABLE_VSCODE": "false"}
        command = [sys.executable, "-m", "openhands.agent_server", "--port", str(port)]
        with Path(folder, "log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT
            )
        try:
            _wait(lambda: _answers(port), process, Path(folder, "log"))
            return _sdk_commands(f"http://127.0.0.1:{port}", key, "SDK, agent-server")
        finally:
            process.terminate()
            process.wait()


def _sdk_commands(url: str, key: str, what: str) -> list[float]:
    workspace = RemoteWorkspace(host=url, api_key=key, working_dir="/")
    found = []
    for _ in track(range(EXECS), what):
        begun = time.perf_counter()
        assert workspace.execute_command("true", timeout=30).exit_code == 0
        found.append(time.perf_counter() - begun)
    return found


async def _memory(server: Server, config: Config) -> list[Row]:
    count = 32
    async with server.client() as client, contextlib.AsyncExitStack() as stack:
        spec = _specs(config, 1)[0]
        await stack.enter_async_context(client.sandbox(spec))  # what is loaded once
        before = server.memory()
        for spec in track(_specs(config, count), "memory"):
            sandbox = await stack.enter_async_context(client.sandbox(spec))
            await sandbox.run("true", timeout=30)
        each = (server.memory() - before) / count / MIB
    return [("server's memory for one more sandbox", f"{each:.2f} MiB", "", "goal: 5 MiB")]


async def _crowd(server: Server, config: Config) -> list[Row]:
    async with server.client() as client:
        begun = time.perf_counter()
        starts = [asyncio.create_task(client.start(spec)) for spec in _specs(config, CROWD)]
        await asyncio.wait(starts)
        seconds = time.perf_counter() - begun
        started = [task.result() for task in starts if task.exception() is None]
        resident = server.process.memory_info().rss / MIB
        await asyncio.gather(*(sandbox.stop() for sandbox in started))
    return [
        (
            f"{CROWD} sandboxes asked for at once",
            f"{len(started)} of {CROWD} in {seconds:.1f} s",
            "",
            f"server: {resident:.0f} MiB resident; goal: 200",
        )
    ]


async def _lifecycles(server: Server, config: Config) -> list[Row]:
    async with server.client() as client:
        async with client.sandbox(_specs(config, 1)[0]):
            pass
        before = await asyncio.to_thread(_left, server)
        begun = time.perf_counter()
        slots = asyncio.Semaphore(AT_A_TIME)

        async def live(spec: SandboxSpec) -> None:
            async with slots, client.sandbox(spec) as sandbox:
                assert (await sandbox.run("true", timeout=30)).exit_code == 0

        lives = [live(spec) for spec in _specs(config, LIFECYCLES)]
        for life in track(asyncio.as_completed(lives), "lifecycles", total=LIFECYCLES):
            await life
        seconds = time.perf_counter() - begun
        after = await asyncio.to_thread(_left, server)
    grown = {name: after[name] - before[name] for name in after}
    left = ", ".join(f"{count} {name}" for name, count in grown.items())
    rate = LIFECYCLES / seconds
    return [(f"{LIFECYCLES} lifecycles", f"{rate:.1f} a second", "", f"left: {left}")]


def _left(server: Server) -> dict[str, int]:
    """What lifecycles could leave behind, when no sandbox is being removed any more."""
    deadline = time.monotonic() + READY_SECONDS
    while _containers(server) and time.monotonic() < deadline:
        time.sleep(0.05)
    kinds = [connection.status for connection in server.process.net_connections("tcp")]
    return {
        "containers": _containers(server),
        "file descriptors": server.process.num_fds() - kinds.count(psutil.CONN_ESTABLISHED),
        "ports": kinds.count(psutil.CONN_LISTEN),
        "files": _files(podman_run_dir()) + _files(server.folder),
    }


def _containers(server: Server) -> int:
    server_id = (server.folder / "runtime" / "server_id").read_text()
    listed = ["ps", "--all", "--quiet", "--filter", f"label={LABEL}={server_id}"]
    return len(check_podman(listed).split())


def _files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


def _config() -> Config:
    return parse_config(
        {
            "model": {"path": "none", "context_tokens": 8192},
            "tasks": {"train": ["shell:train"], "validation": ["shell:validation"]},
            "rollout": {
                "trajectories_per_prompt": 2,
                "prompts_per_step": 1,
                "prompt_tokens": 4096,
                "response_tokens": 4096,
            },
            "sandbox": {"memory_mib": 128, "pids": 64, "disk_mib": 128},
            "runtime": {"max_sandboxes": CROWD},
            "train": {"steps": 1},
        }
    )


def _specs(config: Config, count: int) -> list[SandboxSpec]:
    return [SandboxSpec.from_config(config, image=IMAGE) for _ in range(count)]


@contextlib.contextmanager
def _server(folder: Path, config: Config) -> Iterator[Server]:
    """The entry point, from ready to its end."""
    (folder / "config.toml").write_text(dump_toml(config))
    names = {"--config": "config.toml", "--rendezvous": "runtime.json", "--key-file": "key"}
    options = [word for name, file in names.items() for word in (name, str(folder / file))]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "entrypoints" / "runtime"), *options],
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait((folder / "runtime.json").exists, process, folder / "log")
        place: dict[str, Any] = json.loads((folder / "runtime.json").read_text())
        key = (folder / "key").read_text().strip()
        yield Server(psutil.Process(process.pid), folder, place["url"], key)
    finally:
        process.terminate()
        process.wait()


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            sys.exit(f"did not come up: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _milliseconds(seconds: list[float]) -> str:
    p99 = statistics.quantiles(seconds, n=100)[98]
    return f"{statistics.median(seconds) * 1e3:.1f}, {p99 * 1e3:.1f} ms"


def _table(rows: list[Row]) -> list[str]:
    cores = psutil.cpu_count()
    head = f"{cores} cores, {sys.platform}, podman {_podman_version()}."
    lines = ["# The runtime server beside its peers", "", f"`python benchmarks/runtime.py`; {head}"]
    lines += ["", "| what | Skiff | peer | ratio |", "|---|---|---|---|"]
    return lines + [f"| {' | '.join(row)} |" for row in rows]


def _podman_version() -> str:
    return check_podman(["version", "--format={{.Client.Version}}"]).decode().strip()


if __name__ == "__main__":
    main()
