"""What Slurm says of a profile, asked on a login node. Nothing is submitted.

`sbatch --test-only` is the judge of account, qos, time, memory and gres: it knows the site's limits
and its submit plugins, which no list of ours does.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from skiff.config import Config
from skiff.config.slurm import Slurm, SlurmHalf
from skiff.doctor.check import Check, absent, fail, failed, ok, warn
from skiff.errors import InfraError
from skiff.launch import run_folder, slurm
from skiff.launch.sbatch import Shape, sbatch_text

HALVES = {"runtime": Shape.RUNTIME, "trainer": Shape.TRAINER}


def check_cluster(config: Config) -> list[Check]:
    """Partitions, accounts, and each half's request."""
    if config.slurm is None:
        return [absent("slurm", "the profile has no [slurm]: it runs on one machine")]
    try:
        partitions = slurm.partitions()
    except InfraError as error:
        return [failed("slurm", error)]
    names = ", ".join(sorted(partitions))
    return [
        ok("slurm", f"answers; its partitions: {names}"),
        _accounts(config.slurm),
        *_halves(config, config.slurm, partitions),
    ]


def wanted_halves(config: Config) -> dict[str, SlurmHalf]:
    """The halves that the profile submits."""
    if config.slurm is None:
        return {}
    halves: dict[str, SlurmHalf] = {"trainer": config.slurm.trainer}
    if config.runtime.url is None:
        halves["runtime"] = config.slurm.runtime
    return halves


def _halves(
    config: Config, asked: Slurm, partitions: dict[str, slurm.Partition]
) -> Iterator[Check]:
    for name, half in wanted_halves(config).items():
        if half.partition is not None:
            yield from _partition(name, half, partitions)
        yield _submission(config, asked, name)


def _partition(
    half_name: str, half: SlurmHalf, partitions: dict[str, slurm.Partition]
) -> Iterator[Check]:
    name = f"{half_name} partition"
    for wanted in str(half.partition).split(","):
        found = partitions.get(wanted)
        if found is None:
            yield fail(
                name,
                f"there is no partition {wanted}",
                f"set slurm.{half_name}.partition to one of: {', '.join(sorted(partitions))}",
            )
        elif not found.up:
            yield fail(name, f"{wanted} is down", "another partition, or wait; see sinfo -R")
        else:
            yield ok(name, f"{wanted} is up: {found.nodes} nodes, time limit {found.limit}")
            if half.gres and not found.gres:
                yield fail(
                    f"{half_name} gres",
                    f"no node of {wanted} has a gres, and {half.gres} is asked for",
                    f"see sinfo -o '%R %G'; another slurm.{half_name}.partition",
                )


def _submission(config: Config, asked: Slurm, name: str) -> Check:
    shape = HALVES[name]
    place = run_folder.place(config)
    text = sbatch_text(config, asked, place, 1, shape, python=Path(sys.executable))
    try:
        return ok(f"{name} request", slurm.check_submission(text))
    except InfraError as error:
        words = " ".join(error.what.splitlines())
        return fail(
            f"{name} request",
            f"Slurm would refuse it: {words}",
            f"change [slurm.{name}]; scontrol show partition says what is allowed",
        )


def _accounts(asked: Slurm) -> Check:
    wanted = {half.account for half in (asked.runtime, asked.trainer) if half.account}
    try:
        found = slurm.accounts()
    except InfraError:
        return absent("account", "this Slurm keeps no accounts, or does not show them")
    if missing := sorted(wanted - set(found)):
        return fail("account", f"you have no account {', '.join(missing)}", f"yours: {found}")
    if not found:
        return warn("account", "Slurm knows no account of yours", "ask the site for one")
    return ok("account", f"yours: {', '.join(found)}")
