"""The one seam where Slurm's programs are started: sbatch, scontrol, scancel, and for the doctor
sinfo, sacctmgr and srun.

What a job is doing is asked of slurmctld, which forgets a job some minutes after its end
(MinJobAge); sacct, which many sites lack, is not needed.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.config.secrets import without_secrets
from skiff.errors import InfraError

SECONDS = 120.0  # a busy slurmctld answers late
ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
_REMEDIES = {"sbatch": "set [slurm] of the profile to what `sinfo` and your site offer"}
_UNKNOWN = "Invalid job id specified"


@dataclass(frozen=True)
class Job:
    """A job, or one component of a heterogeneous job.

    group   of the component; None for an ordinary job
    reason  why it is not running, in Slurm's word; "" when there is none
    begins  when it has started or is expected to; "" when Slurm does not know
    exit    the script's exit status, or 128 and the signal's number
    ends    when it has ended or meets its time limit, as `begins`
    """

    id: str
    group: int | None
    state: str
    reason: str
    begins: str
    nodes: str
    exit: int
    ends: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED


@dataclass(frozen=True)
class Partition:
    """What sinfo tells of a partition: one line for each kind of its nodes.

    limit  the longest time limit, e.g. '12:00:00' or 'infinite'
    gres   e.g. ('gpu:a100:8',)
    """

    name: str
    up: bool
    limit: str
    nodes: int
    gres: tuple[str, ...]


def partitions() -> dict[str, Partition]:
    """The partitions of the cluster by name. Raises InfraError with Slurm's words."""
    found: dict[str, Partition] = {}
    for line in _call(["sinfo", "--noheader", "--format=%R|%a|%l|%D|%G"]).splitlines():
        name, state, limit, nodes, gres = line.split("|")
        before = found.get(name)
        found[name] = Partition(
            name=name,
            up=state == "up",
            limit=limit,
            nodes=int(nodes) + (before.nodes if before else 0),
            gres=(*(before.gres if before else ()), *([gres] if _known(gres) else [])),
        )
    return found


def check_submission(text: str) -> str:
    """Have Slurm say when a script would start, submitting nothing; returns its sentence. Raises
    InfraError with its words when the script would be refused."""
    return _run(["sbatch", "--test-only"], stdin=text).stderr.strip().removeprefix("sbatch: ")


def accounts() -> list[str]:
    """The accounts of this user. Raises InfraError where Slurm keeps none."""
    user = f"user={os.environ.get('USER') or os.getuid()}"
    out = _call(["sacctmgr", "--noheader", "--parsable2", "show", "assoc", user, "format=account"])
    return sorted(set(out.split()))


def srun(options: Sequence[str], command: Sequence[str], *, stdin: str, seconds: float) -> str:
    """Run `command` on a node; returns its output, whatever its exit status was.

    Raises InfraError when it has written nothing, or does not end in `seconds`.
    """
    done = _run(["srun", *options, *command], stdin=stdin, seconds=seconds, check=False)
    if not done.stdout:
        raise InfraError(done.stderr.strip() or f"exit {done.returncode}", where="srun")
    return done.stdout


def sbatch(script: Path, *, options: Sequence[str] = ()) -> str:
    """Submit; returns the job's id. Raises InfraError with Slurm's words."""
    out = _call(["sbatch", "--parsable", *options, str(script)])
    return out.strip().split(";")[0]  # ID or ID;CLUSTER


def show_job(job_id: str) -> list[Job]:
    """The job, or the components of the heterogeneous job that it leads.

    Empty when Slurm does not know it (any more). Raises InfraError with Slurm's words.
    """
    try:
        out = _call(["scontrol", "show", "job", "--oneliner", job_id])
    except InfraError as error:
        if _UNKNOWN in error.what:
            return []
        raise
    return [_job(line) for line in out.splitlines() if line.startswith("JobId=")]


def terminate(job_id: str) -> None:
    """Send SIGTERM to the script of a running job, and to nothing that it has started.

    Raises InfraError.
    """
    _call(["scancel", "--batch", "--signal=TERM", job_id])


def scancel(job_ids: Sequence[str]) -> None:
    """Cancel the jobs; those that have ended are left out. Raises InfraError."""
    _call(["scancel", *job_ids])


def _job(line: str) -> Job:
    found = dict(re.findall(r"(\w+)=(\S*)", line))
    status, _, number = found["ExitCode"].partition(":")
    offset = found.get("HetJobOffset")
    return Job(
        id=found["JobId"],
        group=None if offset is None else int(offset),
        state=found["JobState"],
        reason=_known(found.get("Reason", "")),
        begins=_known(found.get("StartTime", "")),
        nodes=_known(found.get("NodeList", "")),
        exit=128 + int(number) if int(number) else int(status),
        ends=_known(found.get("EndTime", "")),
    )


def _known(word: str) -> str:
    return "" if word in ("None", "Unknown", "(null)") else word


def _call(command: Sequence[str]) -> str:
    return _run(command).stdout


def _run(
    command: Sequence[str], *, stdin: str = "", seconds: float = SECONDS, check: bool = True
) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            input=stdin,
            env=without_secrets(os.environ),  # Slurm keeps it with the job
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
        )
    except FileNotFoundError:
        raise InfraError(
            "is not installed here",
            where=command[0],
            remedy="run this on a login node of a Slurm cluster; `skiff run` needs no Slurm",
        ) from None
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no answer within {seconds:g} s", where=command[0]) from error
    if check and done.returncode != 0:
        lines = done.stderr.strip().splitlines() or [f"exit {done.returncode}"]
        words = "; ".join(line.removeprefix(f"{command[0]}: error: ") for line in lines)
        raise InfraError(words, where=command[0], remedy=_REMEDIES.get(command[0], ""))
    return done
