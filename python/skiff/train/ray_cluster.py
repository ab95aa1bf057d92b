"""Ray over the trainer's nodes: the first node starts its head, the others join it and leave when
it goes.

Each `ray start --block` is a child of the trainer's half on that node, so only our own processes
are ever ended, and a node's workers have the environment that is made there. The nodes meet at
RUN/rendezvous/NN/ray.json; every node makes the token of a start from the run's key.

Not covered: a node that is lost and comes back; the job ends, and the next attempt goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from skiff.attempts import meeting_folder
from skiff.config import Config
from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.processes import Child
from skiff.sandbox.key import read_key_file
from skiff.train.overrides import ray_resources
from skiff.train.ray_ports import choose_ports
from skiff.train.retry import TransientError, failure_told
from skiff.train.scratch import scratch

PLACE = "ray.json"
JOIN_SECONDS = 300.0  # the other nodes wait for the head already
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Place:
    """What the head's node tells the others.

    temp_dir   Ray's, at the same path on every node, in a scratch folder
    nonce      of this start; the token is made with it
    variables  of every node's workers; no secret
    """

    address: str
    temp_dir: str
    nonce: str
    variables: dict[str, str]


@contextlib.contextmanager
def ray_of(
    config: Config,
    run_dir: Path,
    attempt: int,
    environment: Mapping[str, str],
    variables: dict[str, str],
    temp_dir: Path,
) -> Iterator[str]:
    """verl's argument that names its Ray: one that it starts itself in `temp_dir`; where there are
    several nodes, one that all have joined and that ends with the block.

    `environment` is that of verl, with the place of Ray's token; `variables` are those in it that
    other nodes cannot know. Raises InfraError when Ray does not come up, or a node has not joined
    within JOIN_SECONDS.
    """
    if config.hardware.nodes == 1:
        yield f"+ray_kwargs.ray_init._temp_dir={temp_dir}"
        return
    place_file = meeting_folder(run_dir, attempt) / PLACE
    ports = choose_ports(_job(), 0)
    here = node_address(config.hardware.interface)
    nonce = secrets.token_hex(16)
    place = Place(f"{here}:{ports.head}", str(temp_dir), nonce, variables)
    write_token(Path(environment["RAY_AUTH_TOKEN_PATH"]), run_dir, nonce)
    command = [*ray_start(config, here), "--head", *ports.options(head=True)]
    command += ["--include-dashboard=false", f"--temp-dir={temp_dir}"]
    log = run_dir / "logs" / f"ray-0.{attempt:02d}.log"
    try:
        with Child(command, environment, log) as ray:
            _wait_listening(here, ports.head, ray, log)
            write_atomic(place_file, json.dumps(asdict(place)) + "\n")
            _wait_nodes(config, place, environment, log)
            yield f"+ray_kwargs.ray_init.address={place.address}"
    finally:
        place_file.unlink(missing_ok=True)


def join(
    config: Config,
    run_dir: Path,
    attempt: int,
    node: int,
    environment: Mapping[str, str],
) -> None:
    """Be node number `node` of every cluster that the first node starts, until SIGTERM. The workers
    here have `environment` and what the first node adds.

    Raises InfraError when Ray ends here while the first node counts on it.
    """
    place_file = meeting_folder(run_dir, attempt) / PLACE
    log = run_dir / "logs" / f"ray-{node}.{attempt:02d}.log"
    while True:
        if (place := read_place(place_file)) is not None:
            try:
                _take_part(config, run_dir, place, place_file, node, environment, log)
            except TransientError as error:  # the first node waits JOIN_SECONDS for us
                print(f"{error}; joined again, because {error.why}", flush=True)
        time.sleep(POLL_SECONDS)


def _take_part(
    config: Config,
    run_dir: Path,
    place: Place,
    place_file: Path,
    node: int,
    environment: Mapping[str, str],
    log: Path,
) -> None:
    """Until the place is no longer told."""
    here = node_address(config.hardware.interface)
    with scratch(Path(place.temp_dir).parent), tempfile.TemporaryDirectory(dir="/tmp") as private:
        token = Path(private) / "token"
        write_token(token, run_dir, place.nonce)
        command = [*ray_start(config, here), f"--address={place.address}"]
        command += choose_ports(_job(), node).options(head=False)
        whole = {**environment, **place.variables, **token_variables(token)}
        with Child(command, whole, log) as ray:
            while read_place(place_file) == place:
                if ray.returncode is not None:
                    time.sleep(POLL_SECONDS)  # the head's end may be its cause
                    if read_place(place_file) != place:
                        return
                    raise failure_told(log, f"Ray on node {node}")
                time.sleep(POLL_SECONDS)


def ray_start(config: Config, here: str) -> list[str]:
    """`ray start` of any node, at the address `here`."""
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block"]
    command += [f"--node-ip-address={here}", "--disable-usage-stats"]
    resources = ray_resources(config)
    return command + [f"--{name.replace('_', '-')}={value}" for name, value in resources.items()]


def token_variables(token: Path) -> dict[str, str]:
    """What makes Ray ask for the token and give it."""
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token)}


def write_token(path: Path, run_dir: Path, nonce: str) -> None:
    """The token of the start `nonce`, readable by its owner only."""
    key = read_key_file(run_dir / "rendezvous" / "key")
    token = hmac.new(key.encode(), f"ray {nonce}".encode(), hashlib.sha256).hexdigest()
    write_atomic(path, token, mode=0o600)


def read_place(path: Path) -> Place | None:
    """What the first node tells; None when there is no cluster (any more)."""
    try:
        return Place(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def node_address(interface: str | None) -> str:
    """This node's IPv4 address at `interface`, else the one that its name means, unless that is the
    loopback's and there is another. Raises InfraError when the interface has none."""
    found: dict[str, str] = {
        name: entry.address
        for name, entries in psutil.net_if_addrs().items()
        for entry in entries
        if entry.family == socket.AF_INET
    }
    if interface is not None:
        if interface not in found:
            raise InfraError(
                f"has no IPv4 address on {socket.gethostname()}; there are {', '.join(found)}",
                where=f"hardware.interface = {interface}",
            )
        return found[interface]
    named = socket.gethostbyname(socket.gethostname())
    if not named.startswith("127."):
        return named
    return next((each for each in found.values() if not each.startswith("127.")), named)


def _job() -> int:
    return int(os.environ.get("SLURM_JOB_ID", os.getpid()))


def _wait_listening(host: str, port: int, ray: Child, log: Path) -> None:
    deadline = time.monotonic() + JOIN_SECONDS
    while not _listens(host, port):
        if ray.returncode is not None or time.monotonic() > deadline:
            raise failure_told(log, "Ray's head did not come up")
        time.sleep(POLL_SECONDS)


def _listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(POLL_SECONDS)
        return probe.connect_ex((host, port)) == 0


def _wait_nodes(config: Config, place: Place, environment: Mapping[str, str], log: Path) -> None:
    command = [sys.executable, "-m", "skiff.train.ray_nodes", place.address]
    command += [str(config.hardware.nodes), str(JOIN_SECONDS)]
    with Child(command, environment, log) as probe:
        while probe.returncode is None:
            time.sleep(POLL_SECONDS)
    if probe.returncode != 0:
        raise failure_told(log, "Ray over the trainer's nodes")
