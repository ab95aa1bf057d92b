"""The text of a job, as a pure function: what Slurm is asked for, and how the halves are run.

A script holds no secret and no address: what a half needs it finds in the run folder
(skiff.launch.half), and Slurm hands the submitter's environment on.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator
from enum import Enum
from pathlib import Path

from skiff.config import Config
from skiff.config.slurm import Slurm, SlurmHalf
from skiff.launch import run_folder
from skiff.train import save_request
from skiff.train.save_request import SAVED


class Shape(Enum):
    """Which halves one job runs."""

    HET = "het"
    RUNTIME = "runtime"
    TRAINER = "train"


_TITLES = {
    Shape.HET: "the runtime server (het group 0) and the trainer (het group 1)",
    Shape.RUNTIME: "the runtime server",
    Shape.TRAINER: "the trainer",
}
_OPTIONS = {  # a field of SlurmHalf -> sbatch's option
    "partition": "partition",
    "account": "account",
    "qos": "qos",
    "constraint": "constraint",
    "gres": "gres",
    "cpus": "cpus-per-task",
    "memory": "mem",
    "time": "time",
    "exclude": "exclude",
    "reservation": "reservation",
}
_HEAD = """\

set -uo pipefail

{bound}attempt=$(({attempt} + ${{SLURM_RESTART_COUNT:-0}}))
meeting={run}/rendezvous/$(printf %02d "$attempt")
mkdir -p "$meeting"
start() {{ # start HALF SRUN-OPTION...
    srun "${{@:2}}" --ntasks-per-node=1 --kill-on-bad-exit=0 --wait=120 \\
        {python} -m skiff.launch.half "$1" --run {run} --attempt "$attempt"{alone} &
    halves[$!]=$1
}}
# A signal would reach every process of a half at once; at this file it ends in order.
end() {{ # end [EXIT-CODE SENTENCE]
    [ -e "$meeting/{end}" ] && return # who failed has said more
    printf '%s\\n' "$@" >"$meeting/.{end}" && mv "$meeting/.{end}" "$meeting/{end}"
}}
preempted() {{ scontrol show job --oneliner "$SLURM_JOB_ID" | grep -q ' PreemptTime=[0-9]'; }}
cancelled='' first='' code=''
trap '{at_limit}' USR1 # before the time limit
trap 'cancelled=1; end' TERM # `skiff cancel`

"""
_BOUND = """\
if [ "${{SLURM_RESTART_COUNT:-0}}" -gt {requeues} ]; then # Slurm counts lost nodes, too
    echo "error: begun again more often than slurm.requeues = {requeues} allows" >&2
    exit 124
fi
"""
_SAVE = 'touch "$meeting/{save}"'  # the trainer saves and is then the first half that ends
_LEAVE = 'end {later} "the time limit is near"'
_TAIL = """\

until [ -n "$first" ]; do
    wait -n # until a half has ended, or a signal has come
    for pid in "${{!halves[@]}}"; do
        kill -0 "$pid" 2>/dev/null && continue
        wait "$pid"
        code=$? first=${{halves[$pid]}} # of the half that ended first, which is the cause
        break
    done
done
if [ -z "$cancelled" ] && preempted; then code={later}; fi
end "$code" "the $first half ended with exit code $code"
{cause}while [ -n "$(jobs -r)" ]; do wait; done
if [ -n "$cancelled" ]; then
    scancel "$SLURM_JOB_ID"
elif [ "$(head -n 1 "$meeting/{end}")" = {later} ]; then # not done, and to be gone on with
    {go_on}[ "$code" = {later} ] && code=124 # as timeout(1) says it
fi
"""
_CAUSE = """\
read -r told <"$meeting/{end}" && code=${{told:-$code}} # of a half that said so before it had ended
"""
_REQUEUE = """\
[ "${{SLURM_RESTART_COUNT:-0}}" -lt {requeues} ] && scontrol requeue "$SLURM_JOB_ID"
    """


def sbatch_text(
    config: Config,
    slurm: Slurm,
    run_dir: Path,
    attempt: int,
    shape: Shape,
    *,
    python: Path,
    alone: bool = False,
) -> str:
    """The script of one job of the run in `run_dir`.

    `python` is the interpreter of a clone that every node sees. `alone`: the run has no other half.
    """
    lines = ["#!/usr/bin/env bash", f"# {config.run.name}: {_TITLES[shape]}."]
    lines += [f"# {name}: {place}." for name, place in _places(config, shape)]
    lines += ["# Written by `skiff launch`."]
    lines += [f"#SBATCH {option}" for option in _request(config, slurm, run_dir, shape)]
    starts = "".join(f"start {words}\n" for words in _starts(config, slurm, shape))
    at_limit = (_LEAVE if alone and shape is Shape.RUNTIME else _SAVE).format(
        save=save_request.NAME, later=SAVED
    )
    bound = _BOUND.format(requeues=slurm.requeues) if slurm.requeues else ""
    head = _HEAD.format(
        bound=bound,
        alone=" --alone" if alone else "",
        attempt=attempt,
        end=run_folder.END,
        python=shlex.quote(str(python)),
        run=shlex.quote(str(run_dir)),
        at_limit=at_limit,
    )
    go_on = _REQUEUE.format(requeues=slurm.requeues) if slurm.requeues else ""
    told = shape is Shape.HET or alone  # in two jobs each has an exit code of its own
    cause = _CAUSE.format(end=run_folder.END) if told else ""
    tail = _TAIL.format(end=run_folder.END, later=SAVED, go_on=go_on, cause=cause)
    return "\n".join(lines) + "\n" + head + starts + tail + 'exit "$code"\n'


def _places(config: Config, shape: Shape) -> Iterator[tuple[str, str]]:
    """Each half, and what its entry point is started from (skiff.launch.containers)."""
    if shape is not Shape.TRAINER:
        yield "runtime", _place(config.images.runtime)
    if shape is not Shape.RUNTIME:
        yield "train", _place(config.images.trainer)


def _place(image: Path | None) -> str:
    return "from the clone" if image is None else f"by apptainer run {shlex.quote(str(image))}"


def _request(config: Config, slurm: Slurm, run_dir: Path, shape: Shape) -> Iterator[str]:
    log = str(run_dir / "logs" / "slurm.%j.log").replace("%", "%%").replace("%%j.log", "%j.log")
    yield f"--job-name={config.run.name}"
    yield f"--output={shlex.quote(log)}"
    yield "--open-mode=append"
    yield f"--signal=B:USR1@{slurm.signal_seconds}"
    yield "--requeue" if slurm.requeues else "--no-requeue"
    if shape is not Shape.TRAINER:
        yield from _half(slurm.runtime, slurm.runtime.nodes)
    if shape is Shape.HET:
        yield "hetjob"
    if shape is not Shape.RUNTIME:
        yield from _half(slurm.trainer, config.hardware.nodes)


def _half(half: SlurmHalf, nodes: int) -> Iterable[str]:
    yield f"--nodes={nodes}"
    yield "--ntasks-per-node=1"
    for name, option in _OPTIONS.items():
        if (value := getattr(half, name)) is not None:
            yield f"--{option}={value}"
    for option in half.extra:
        name, equals, value = option.partition("=")
        yield f"{name}{equals}{shlex.quote(value) if value else ''}"


def _starts(config: Config, slurm: Slurm, shape: Shape) -> Iterator[str]:
    if shape is not Shape.TRAINER:
        yield _start("runtime", slurm.runtime, slurm.runtime.nodes, shape, group=0)
    if shape is not Shape.RUNTIME:
        yield _start("train", slurm.trainer, config.hardware.nodes, shape, group=1)


def _start(name: str, half: SlurmHalf, nodes: int, shape: Shape, *, group: int) -> str:
    words = [name]
    if shape is Shape.HET:
        words.append(f"--het-group={group}")
    words.append(f"--nodes={nodes}")
    if half.cpus is not None:  # a step does not take this from its job
        words.append(f"--cpus-per-task={half.cpus}")
    return " ".join(words)
