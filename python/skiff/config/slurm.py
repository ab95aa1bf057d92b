"""`[slurm]`: what each half asks Slurm for. Every value ends as one `#SBATCH --name=value` line.

What can be derived is not here: the trainer's nodes are hardware.nodes, the job's name is run.name.
Not covered: arrays, several clusters.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from skiff.config.section import NotNegative, Positive, Seconds, Section, matching

Word = Annotated[
    str,
    matching(
        r"[A-Za-z0-9_.,:;@%+=/&|()*\[\]!<>-]+",
        "one word; sbatch or a shell would misread blanks, quotes, $, # and \\",
    ),
]
TimeLimit = Annotated[
    str,
    matching(
        r"[0-9]+(:[0-9]{2}){0,2}|[0-9]+-[0-9]{1,2}(:[0-9]{2}){0,2}",
        "minutes, hours:minutes:seconds or days-hours[:minutes[:seconds]]",
    ),
]
Memory = Annotated[str, matching(r"[0-9]+[KMGT]?", "a number with K, M, G or T")]
Option = Annotated[
    str, matching(r"--[a-z][a-z0-9-]*(=[^\\]+)?", "--name or --name=value, without a \\")
]


class SlurmHalf(Section):
    """One half's request. What is not set is the site's default."""

    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    gres: Word | None = Field(None, description="of each node, e.g. 'gpu:a100:2'")
    cpus: Positive | None = Field(None, description="of each node")
    memory: Memory | None = Field(None, description="of each node, e.g. '64G'")
    time: TimeLimit | None = Field(None, description="e.g. '12:00:00' or '2-00:00:00'")
    exclude: Word | None = None
    reservation: Word | None = None
    extra: tuple[Option, ...] = Field((), description="further options, e.g. '--exclusive'")


class SlurmRuntime(SlurmHalf):
    """The runtime server's half, on CPU nodes."""

    nodes: Positive = Field(1, description="one server on each")


class Slurm(Section):
    """One submission."""

    mode: Literal["het", "two-jobs"] = Field(
        "het", description="both halves in one heterogeneous job, or a job for each"
    )
    signal_seconds: Positive = Field(
        120, description="before the time limit, when the trainer is asked to save and end"
    )
    requeues: NotNegative = Field(
        0, description="so often a job goes on: at its time limit, preempted, or a part was lost"
    )
    lease_seconds: Seconds = Field(
        120, description="a half that gives no sign of life for so long ends the other one"
    )
    wait_seconds: Seconds = Field(
        1800, description="so long the half that is there first waits for the other one"
    )
    runtime: SlurmRuntime = SlurmRuntime()
    trainer: SlurmHalf = SlurmHalf()
