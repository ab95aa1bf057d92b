"""Both halves of a run on this machine, as two child processes (`skiff run`, `skiff resume`).

The same entry points run under Slurm; this only starts them, watches them and ends them. A runtime
server that dies is started again on its port and takes over the sandboxes that still live; what was
lost meanwhile is masked by the trainer. Not covered: several nodes.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from skiff import events
from skiff.config import Config
from skiff.config.load import write_config
from skiff.config.secrets import without_secrets
from skiff.errors import InfraError
from skiff.images.runnable import runnable
from skiff.launch.containers import (
    Program,
    at_own_path,
    clone_program,
    passed_variables,
    runtime_binds,
    sif_program,
    trainer_binds,
    trainer_variables,
)
from skiff.podman import SOCKET_VARIABLE, podman_root, podman_run_dir
from skiff.processes import Child

ENTRYPOINTS = Path(__file__).parents[3] / "entrypoints"
RESTARTS = 3  # of the runtime server
POLL_SECONDS = 0.2
FULL_BYTES = 1 << 20  # of a disk: with less free it is full
READY_SECONDS = 60.0
ENDS = (signal.SIGINT, signal.SIGTERM)
INTERRUPTED = 130  # exit status: 128 + SIGINT, as shells count


@dataclass
class Halves:
    """The two processes of one attempt."""

    config: Config
    run_dir: Path
    attempt: int
    entrypoints: Path = ENTRYPOINTS
    running: dict[str, Child] = field(default_factory=dict)
    dead: list[Child] = field(default_factory=list)  # servers whose sandboxes live on
    port: int | None = None  # the server's, once it has been up
    scratch: list[Path] = field(default_factory=list)
    meeting: Path | None = None  # a folder, where there are several servers
    node: str = ""  # stands in the logs' names, where there are several nodes

    @property
    def rendezvous(self) -> Path:
        """The file, or the folder of files, by which the trainer finds the server."""
        return self.meeting or self.run_dir / "rendezvous" / "runtime.json"

    @property
    def published(self) -> Path:
        """The file that this node's server writes when it is ready."""
        named = f"runtime-{socket.gethostname()}.json"
        return self.meeting / named if self.meeting else self.rendezvous

    def start(self, name: str, *arguments: str) -> None:
        """Start `entrypoints/<name>` with its output in logs/."""
        options = ["--config", str(self.run_dir / "config.toml")]
        options += ["--rendezvous", str(self.rendezvous), *arguments]
        program = self._program(name, options)
        self.running[name] = Child(program.command, program.environment, self.log(name))

    def _program(self, name: str, options: list[str]) -> Program:
        image = self.config.images.trainer if name == "train" else self.config.images.runtime
        if image is None:
            return clone_program(self.entrypoints / name, options, secrets=name == "train")
        if name == "train":
            binds = trainer_binds(self.config, self.run_dir)
            variables = trainer_variables(self.config)
        else:
            binds, variables = runtime_binds(self.config, self.run_dir), passed_variables()
            if self.config.runtime.backend == "podman":
                place = self._serve_podman()
                binds.append(at_own_path(place.parent))
                # So that the disk of each sandbox is watched.
                binds.append(at_own_path(podman_root(), read_only=True))
                variables[SOCKET_VARIABLE] = str(place)
        scratch = Path(tempfile.mkdtemp(prefix="skiff-", dir="/tmp"))  # short: Ray's sockets
        self.scratch.append(scratch)
        return sif_program(
            runnable(image),
            options,
            binds=binds,
            scratch=scratch,
            variables=variables,
            gpus=name == "train" and self.config.hardware.platform == "cuda",
        )

    def _serve_podman(self) -> Path:
        """The socket of the host's podman; its service is started when there is none yet."""
        path = podman_run_dir() / f"host-{os.getpid()}" / "podman.sock"
        if "podman" not in self.running:
            command = [sys.executable, "-m", "skiff.runtime.podman_host", "--socket", str(path)]
            environment = without_secrets(os.environ)
            self.running["podman"] = Child(command, environment, self.log("podman"))
            _wait_socket(self, path)
        return path

    def log(self, name: str) -> Path:
        """Where one half writes."""
        part = f"{name}-{self.node}" if self.node else name
        return self.run_dir / "logs" / f"{part}.{self.attempt:02d}.log"

    def start_runtime(self) -> None:
        """Start the server, on its port when it is a restart."""
        key_file = self.run_dir / "rendezvous" / "key"
        names = ["--attempt", str(self.attempt), "--job", os.environ.get("SLURM_JOB_ID", "")]
        if self.port is None:
            self.published.unlink(missing_ok=True)  # of an earlier attempt
        else:
            names += ["--port", str(self.port)]
        self.start("runtime", "--key-file", str(key_file), *names)

    def stop(self, name: str) -> None:
        """End one half and all that it has started."""
        child = self.running.pop(name, None)
        if child is not None:
            child.end()


def run_attempt(
    config: Config,
    run_dir: Path,
    attempt: int,
    *,
    watch: Callable[[], None],
    entrypoints: Path = ENTRYPOINTS,
) -> None:
    """Run to the end; `watch` is called several times a second.

    On every way out both halves have ended: the trainer first, so that it can still stop its
    sandboxes. Raises InfraError with the trainer's or the server's last words, KeyboardInterrupt.
    """
    with in_order(Halves(config, run_dir, attempt, entrypoints)) as halves:
        if config.runtime.url is None:
            halves.start_runtime()
            wait_ready(halves)
        halves.start("train", "--attempt", str(attempt))
        restarts = 0
        while (code := halves.running["train"].returncode) is None:
            watch()
            server = halves.running.get("runtime")
            if server is not None and server.returncode is not None:
                restarts += 1
                restart_runtime(halves, restarts)
            time.sleep(POLL_SECONDS)
        watch()
    if code != 0:
        raise InfraError(
            last_error(halves.log("train")) or f"exit code {code}",
            where="trainer",
            remedy=f"logs: {run_dir}/logs; `skiff resume {run_dir}` goes on from the checkpoint",
        )


@dataclass(frozen=True)
class RunningServer:
    """A runtime server that answers."""

    url: str
    key: str
    child: Child
    log: Path

    def check(self) -> None:
        """Raises InfraError with the server's last words when it has ended."""
        if self.child.returncode is not None:
            raise InfraError(
                last_error(self.log) or f"ended with exit code {self.child.returncode}",
                where="runtime server",
            )


@contextlib.contextmanager
def runtime_server(config: Config) -> Iterator[RunningServer]:
    """A runtime server of its own for commands that are no run."""
    with tempfile.TemporaryDirectory(prefix="skiff-") as name:
        folder = Path(name)
        (folder / "logs").mkdir()
        (folder / "rendezvous").mkdir()
        write_config(config, folder / "config.toml")
        with in_order(Halves(config, folder, attempt=1)) as halves:
            halves.start_runtime()
            wait_ready(halves)
            place = json.loads(halves.rendezvous.read_text())
            key = Path(place["key_file"]).read_text().strip()
            yield RunningServer(place["url"], key, halves.running["runtime"], halves.log("runtime"))


def last_error(log: Path) -> str:
    """The error that an entry point printed last, without its prefix; "" when there is none."""
    text = log.read_text(errors="replace") if log.exists() else ""
    if log.exists() and not text and shutil.disk_usage(log.parent).free < FULL_BYTES:
        return (
            f"could not even write its log: No space left on device ({log.parent})"
            "\n  -> make room there; then skiff resume RUN goes on from the last checkpoint"
        )
    _, mark, sentence = f"\n{text}".rpartition("\nerror: ")
    return sentence.strip() if mark else (text.strip().splitlines() or [""])[-1]


@contextlib.contextmanager
def in_order(halves: Halves) -> Iterator[Halves]:
    """End both halves on every way out, the trainer first; one of ENDS is a KeyboardInterrupt."""
    handlers = {
        # SIGINT, too: a shell starts background jobs with it ignored.
        number: signal.signal(number, _interrupt)
        for number in ENDS
    }
    try:
        yield halves
    finally:
        for number in ENDS:  # a Ctrl-C from here on must not leave one half behind
            signal.signal(number, signal.SIG_IGN)
        try:
            halves.stop("train")
        finally:
            halves.stop("runtime")
            for child in halves.dead:
                child.end()  # what no later server has taken over
            halves.stop("podman")
            for folder in halves.scratch:
                shutil.rmtree(folder, ignore_errors=True)
            for number, handler in handlers.items():
                signal.signal(number, handler)


def _interrupt(number: int, frame: object) -> None:
    for each in ENDS:  # the next one would interrupt the end in order
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def wait_ready(halves: Halves) -> None:
    """Wait until the server answers. Raises InfraError with its last words."""
    deadline = time.monotonic() + READY_SECONDS
    server = halves.running["runtime"]
    log = halves.log("runtime")
    while not halves.published.exists():
        if server.returncode is not None:
            words = last_error(log) or f"ended with exit code {server.returncode}"
            raise InfraError(words, where="runtime server", remedy=f"log: {log}")
        if time.monotonic() > deadline:
            raise InfraError(
                f"was not ready within {READY_SECONDS:g} s",
                where="runtime server",
                remedy=f"log: {log}",
            )
        time.sleep(POLL_SECONDS)
    halves.port = json.loads(halves.published.read_text())["port"]


def _wait_socket(halves: Halves, path: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while not _accepts(path):
        if halves.running["podman"].returncode is not None or time.monotonic() > deadline:
            log = halves.log("podman")
            raise InfraError(
                last_error(log) or f"was not ready within {READY_SECONDS:g} s",
                where="podman's service on the host",
                remedy=f"log: {log}",
            )
        time.sleep(POLL_SECONDS)


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def restart_runtime(halves: Halves, restarts: int) -> None:
    """Start a server that has ended anew; InfraError when that was the restart after RESTARTS."""
    server = halves.running.pop("runtime")
    halves.dead.append(server)
    what = f"the runtime server ended with exit code {server.returncode}"
    events.emit(halves.run_dir, "error", what=what, restart=restarts)
    if restarts > RESTARTS:
        log = halves.log("runtime")
        raise InfraError(
            f"{what} after {RESTARTS} restarts: {last_error(log)}",
            where="runtime server",
            remedy=f"log: {log}",
        )
    halves.start_runtime()
