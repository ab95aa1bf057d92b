"""A real sandbox server with real containers, for the tests of every room."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.sandbox import RuntimeClient
from skiff.tasks.shell import IMAGE

ENTRYPOINT = Path(__file__).parents[1] / "entrypoints" / "runtime"
START_SECONDS = 60


@pytest.fixture(scope="session")
def debian_image() -> str:
    """An image with bash, git and python3."""
    ensure_sandbox_image()
    return IMAGE


def _config(**sections: dict[str, Any]) -> Config:
    data: dict[str, dict[str, Any]] = {
        "model": {"path": "none", "context_tokens": 8192},
        "tasks": {"train": ["shell:train"], "validation": ["shell:validation"]},
        "rollout": {
            "trajectories_per_prompt": 2,
            "prompts_per_step": 1,
            "prompt_tokens": 4096,
            "response_tokens": 4096,
        },
        "train": {"steps": 1},
    }
    for name, values in sections.items():
        data.setdefault(name, {}).update(values)
    return parse_config(data)


@pytest.fixture(scope="session")
def runtime_config() -> Callable[..., Config]:
    """`runtime_config(runtime={...}, sandbox={...})`: a valid config."""
    return _config


@pytest.fixture(scope="session")
def sandbox_config() -> Config:
    """A valid config with everything of sandboxes at its default."""
    return _config()


@dataclass
class Server:
    """A running server process and what it has published."""

    process: subprocess.Popen[bytes]
    folder: Path
    place: dict[str, Any]
    log: Path

    @property
    def url(self) -> str:
        return str(self.place["url"])

    @property
    def key(self) -> str:
        return (self.folder / "key").read_text().strip()

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal and wait for the exit status."""
        self.process.send_signal(number)
        return self.process.wait(timeout=START_SECONDS)


def _arguments(folder: Path, config: Config) -> list[str]:
    (folder / "config.toml").write_text(
        tomli_w.dumps(config.model_dump(mode="json", exclude_none=True))
    )
    names = {"--config": "config.toml", "--rendezvous": "runtime.json", "--key-file": "key"}
    options = [word for key, name in names.items() for word in (key, str(folder / name))]
    return [str(ENTRYPOINT), *options]


def _launch(folder: Path, config: Config) -> Server:
    folder.mkdir(exist_ok=True)
    log = folder / "server.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *_arguments(folder, config)], stdout=output, stderr=output
        )
    rendezvous = folder / "runtime.json"
    deadline = time.monotonic() + START_SECONDS
    while not (rendezvous.exists() and str(process.pid) in rendezvous.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            pytest.fail(f"the server did not come up: {log.read_text()}")
        time.sleep(0.05)
    return Server(process, folder, json.loads(rendezvous.read_text()), log)


@pytest.fixture(scope="session")
def server_arguments() -> Callable[[Path, Config], list[str]]:
    """`server_arguments(folder, config)`: the entry point and its arguments."""
    return _arguments


@pytest.fixture
def launch_server(tmp_path: Path) -> Iterator[Callable[..., Server]]:
    """`launch_server(config)`: a server of its own; a second one finds the first one's state."""
    servers: list[Server] = []

    def launch(config: Config) -> Server:
        servers.append(_launch(tmp_path / "run", config))
        return servers[-1]

    yield launch
    for server in servers:
        if server.process.poll() is None:
            server.end()


@pytest.fixture(scope="session")
def runtime_server(
    tmp_path_factory: pytest.TempPathFactory, sandbox_config: Config
) -> Iterator[Server]:
    """One server for all tests that leave it alive."""
    server = _launch(tmp_path_factory.mktemp("server"), sandbox_config)
    yield server
    assert server.end() == 0, server.log.read_text()


@pytest.fixture
async def runtime_client(runtime_server: Server, debian_image: str) -> AsyncIterator[RuntimeClient]:
    """A client of the shared server, whose store holds the Debian image."""
    async with RuntimeClient([runtime_server.url], runtime_server.key) as client:
        yield client
