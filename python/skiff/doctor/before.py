"""`skiff doctor PROFILE`: is everything there that a run of this profile needs?

Without [slurm] this machine is looked at. With it the cluster and the files are, from here, and the
nodes when asked: then `python -m skiff.doctor.node HALF` runs on one node of each half.
"""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from skiff.config import Config
from skiff.config.load import dump_toml
from skiff.config.slurm import SlurmHalf
from skiff.doctor.check import Check, Verdict, absent, failed
from skiff.doctor.cluster import check_cluster, wanted_halves
from skiff.doctor.machine import check_runtime_node, check_trainer_node
from skiff.doctor.places import check_model, check_places, check_shared, check_tasks
from skiff.errors import InfraError
from skiff.launch import slurm

WAIT_SECONDS = 120  # for a free node
LOOK_SECONDS = 300.0
NO_NODE = "Unable to allocate resources: Requested nodes are busy"  # srun's words
_OPTIONS = ("partition", "account", "qos", "constraint", "exclude", "reservation")


def check_profile(
    config: Config, *, key: Path | None = None, on_nodes: bool = False
) -> list[Check]:
    """Every check. `key`: the public key that images must be signed with."""
    found = [*check_places(config, key=key), check_model(config), check_tasks(config)]
    found += check_cluster(config)
    if config.slurm is None:
        if config.runtime.url is None:
            found += check_runtime_node(config)
        found += check_trainer_node(config)
    elif not on_nodes:
        found.append(check_shared(config))
        found.append(absent("nodes", "not looked at", "--on-nodes does, if nodes are free"))
    else:
        with _canary(config) as canary:
            for name, half in wanted_halves(config).items():
                found += _look(config, name, half, canary)
    return found


def is_fine(checks: list[Check]) -> bool:
    """No check has failed."""
    return all(check.verdict is not Verdict.FAIL for check in checks)


def as_json(checks: list[Check]) -> str:
    return json.dumps([check.as_dict() for check in checks], indent=1)


@contextmanager
def _canary(config: Config) -> Iterator[str]:
    """A file by which a node knows that it sees the same folder; "" where there is none yet."""
    folder = config.run.folder.absolute()
    if not folder.is_dir():
        yield ""
        return
    path = folder / f".skiff-doctor-{secrets.token_hex(8)}"
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink()


def _look(config: Config, name: str, half: SlurmHalf, canary: str) -> list[Check]:
    """The checks of one half, from a node of its partition."""
    options = ["--nodes=1", "--ntasks=1", "--time=10", f"--immediate={WAIT_SECONDS}", "--quiet"]
    options += [
        f"--{option}={value}" for option in _OPTIONS if (value := getattr(half, option)) is not None
    ]
    if half.gres is not None:
        options.append(f"--gres={one_of(half.gres)}")
    command = [sys.executable, "-m", "skiff.doctor.node", name, *([canary] if canary else [])]
    try:
        out = slurm.srun(options, command, stdin=dump_toml(config), seconds=LOOK_SECONDS)
        found = [Check.from_dict(each) for each in json.loads(out)]
    except InfraError as error:
        if NO_NODE in error.what:
            what = f"none was free within {WAIT_SECONDS} s"
            return [absent(f"a {name} node", what, "try again later")]
        return [failed(f"a {name} node", error)]
    except ValueError:
        words = out.strip().rpartition("\n")[2]
        return [failed(f"a {name} node", InfraError(f"no report, but: {words}"))]
    return found


def one_of(gres: str) -> str:
    """'gpu:a100:8' -> 'gpu:a100:1': one is enough to look at, and sooner free."""
    first = gres.split(",")[0]
    words, _, count = first.rpartition(":")
    return f"{words}:1" if words and count.isdecimal() else f"{first}:1"
