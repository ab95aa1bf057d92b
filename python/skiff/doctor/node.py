"""The node's part of `skiff doctor --on-nodes`: `python -m skiff.doctor.node HALF [CANARY]`.

Reads the resolved profile from standard input and writes its checks as JSON. CANARY is a file that
the login node has made in run.folder.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import tomllib
from dataclasses import replace
from pathlib import Path

from skiff.config import Config
from skiff.config.load import parse_config
from skiff.doctor.check import Check, failed, ok
from skiff.doctor.machine import check_runtime_node, check_trainer_node
from skiff.doctor.places import check_model, check_places, check_tasks
from skiff.errors import InfraError, SkiffError


def main() -> None:
    """The program."""
    half, *canary = sys.argv[1:]
    node = os.environ.get("SLURMD_NODENAME") or socket.gethostname()
    try:
        config = parse_config(tomllib.loads(sys.stdin.read()))
        found = [*_shared(canary), *check_places(config), *_machine(half, config)]
    except SkiffError as error:
        found = [failed(f"a {half} node", error)]
    print(json.dumps([replace(check, place=node).as_dict() for check in found]))


def _machine(half: str, config: Config) -> list[Check]:
    if half == "runtime":
        return check_runtime_node(config)
    return [check_model(config), check_tasks(config), *check_trainer_node(config)]


def _shared(canary: list[str]) -> list[Check]:
    if not canary:
        return []
    path = Path(canary[0])
    if path.exists():
        return [ok("shared folder", f"{path.parent} is the login node's")]
    unshared = InfraError(
        "is not the same folder as on the login node",
        where=str(path.parent),
        remedy="set run.folder to a file system that all nodes share",
    )
    return [failed("shared folder", unshared)]


if __name__ == "__main__":
    main()
