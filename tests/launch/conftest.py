"""A run folder, and small programs in the place of the two entry points."""

from __future__ import annotations

import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from skiff.config import Config
from skiff.launch import run_folder

# Both write what happens to `story` and take the arguments of the real ones.
HEAD = """
import argparse, json, os, pathlib, signal, socket, sys, time
parser = argparse.ArgumentParser()
for name in ("--config", "--rendezvous", "--key-file", "--attempt", "--port", "--job", "--node"):
    parser.add_argument(name)
options = parser.parse_args()
run = pathlib.Path(options.config).parent
rendezvous = pathlib.Path(options.rendezvous)
if rendezvous.is_dir():
    rendezvous = rendezvous / f"runtime-{socket.gethostname()}.json"

def tell(what):
    with open(run / "story", "a") as story:
        story.write(what + "\\n")

def publish():
    place = {"url": "http://127.0.0.1:1", "port": 4321, "key_file": options.key_file}
    part = rendezvous.with_suffix(".part")
    part.write_text(json.dumps(place))
    part.rename(rendezvous)

def on_term(then):
    def handler(*_):
        tell(then)
        sys.exit(143)
    signal.signal(signal.SIGTERM, handler)

"""
RUNTIME = """
on_term("runtime ends")
tell(f"runtime starts {options.port}")
publish()
time.sleep(600)
"""


@pytest.fixture
def entrypoints(tmp_path: Path) -> Callable[..., Path]:
    """`entrypoints(train, runtime)`: a folder with two scripts of these bodies."""

    def make(train: str, runtime: str = RUNTIME) -> Path:
        folder = tmp_path / "entrypoints"
        folder.mkdir()
        for name, body in (("train", train), ("runtime", runtime)):
            (folder / name).write_text(HEAD + textwrap.dedent(body))
        return folder

    return make


@pytest.fixture
def run_dir(runtime_config: Callable[..., Config], tmp_path: Path) -> Path:
    """A new run folder with one attempt."""
    folder = run_folder.make(runtime_config(run={"folder": str(tmp_path / "made")}))
    assert run_folder.new_attempt(folder) == 1
    return folder


@pytest.fixture
def story(run_dir: Path) -> Callable[[], list[str]]:
    """What the scripts have told so far."""
    file = run_dir / "story"
    return lambda: file.read_text().splitlines() if file.exists() else []


@pytest.fixture(autouse=True)
def nothing_left(run_dir: Path) -> Iterator[None]:
    """No process of a run may outlive it by more than its exit takes."""
    yield
    deadline = time.monotonic() + 10
    while left := processes_of(run_dir):
        assert time.monotonic() < deadline, left
        time.sleep(0.02)


def processes_of(run_dir: Path) -> list[list[str]]:
    """The commands of living processes that name the run; a zombie has none."""
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    return [command for command in commands if str(run_dir) in " ".join(command)]
