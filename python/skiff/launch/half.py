"""One half of a run on a node that Slurm has given it: `python -m skiff.launch.half runtime|train
--run RUN --attempt NN`. The job's script starts it by srun, once per node.

It starts what `skiff run` starts on one machine: the entry point of this clone or of its image, and
on the host podman's service for a runtime server in an image. When the entry point has ended, a
signal arrives or RUN/rendezvous/NN/end is there, all that was started is ended in order. The exit
status is the entry point's, or that of the half that failed first; that of a trainer that was ended
is 130, or SAVED where it was asked to save before the time limit, whether or not it could.

The halves find each other in RUN/rendezvous/NN: what an earlier attempt has left is not looked at.
There each half shows that it lives (skiff.launch.leases), and why it has ended: a file END without
text asks all to end, else its first line is an exit status and the rest a sentence. At SAVED the
job's script has Slurm begin again, if the profile allows that: so a run goes on after a time limit,
and where a part of it was lost or killed by SIGKILL (LostError), which says nothing against it.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import socket
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from skiff import events
from skiff.config import Config
from skiff.config.slurm import Slurm
from skiff.errors import InfraError, SkiffError
from skiff.files import write_atomic
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
from skiff.launch.canary import check_shared
from skiff.launch.leases import Lease, LostError, Partner
from skiff.launch.local import (
    ENTRYPOINTS,
    INTERRUPTED,
    Halves,
    in_order,
    last_error,
    restart_runtime,
    wait_ready,
)
from skiff.launch.run import finish
from skiff.launch.servers import Servers
from skiff.launch.sync import synced
from skiff.launch.time_limit import TimeLimit
from skiff.runtime.leftovers import remove_leftovers
from skiff.runtime.server import STATE_FOLDER
from skiff.train.save_request import SAVED
from skiff.train.scratch import remove_abandoned

POLL_SECONDS = 1.0  # each look is a call to the shared file system
KILLED = 128 + signal.SIGKILL
BUILT_HERE = ("shell", "synthetic")  # tasks in the image that is made where it is absent


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Run one half of a run on this node.")
    parser.add_argument("half", choices=("runtime", "train"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    parser.add_argument("--alone", action="store_true", help="there is no other half of this run")
    given = parser.parse_args()
    try:
        check_shared(given.run)
    except InfraError as error:  # nobody would read what is noted in that folder
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    try:
        code = run_half(given.half, given.run, given.attempt, alone=given.alone)
    except SkiffError as error:
        print(f"error: {error}", file=sys.stderr)
        _tell(given.run, given.attempt, error)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


class EndedElsewhereError(SkiffError):
    """Another part of the run failed first; its exit status is ours."""

    def __init__(self, exit_code: int, sentence: str) -> None:
        super().__init__(sentence or f"another part of the run ended with exit code {exit_code}")
        self.exit_code = exit_code


def run_half(
    name: str,
    run_dir: Path,
    attempt: int,
    *,
    alone: bool = False,
    entrypoints: Path = ENTRYPOINTS,
) -> int:
    """Run it to its end and return its exit status. Raises SkiffError, KeyboardInterrupt.

    `alone`: no other half of this run is to come, so none is waited for.
    """
    config = run_folder.read_config(run_dir)
    node = os.environ.get("SLURMD_NODENAME", "")
    meeting = run_folder.meeting(run_dir, attempt)
    halves = Halves(config, run_dir, attempt, entrypoints, node=node, meeting=meeting)
    seconds = (config.slurm or Slurm()).lease_seconds
    with Lease(meeting, name, node, seconds=seconds) as lease:
        lookout = Lookout(halves, lease, None if alone else _partner(config, meeting, name))
        if name == "runtime":
            return _serve_alone(lookout) if alone else _serve(lookout)
        if (number := int(os.environ.get("SLURM_PROCID", "0"))) > 0:
            return _help_train(lookout, number)
        with synced(config, run_dir):
            code = _train(lookout)
        if config.hardware.nodes > 1:  # the others wait for it
            end = meeting / run_folder.END
            write_atomic(end, f"{code}\nthe train half ended with exit code {code}\n")
        return code


@dataclass
class Lookout:
    """What a half looks at while it runs."""

    halves: Halves
    lease: Lease
    partner: Partner | None

    def check(self) -> bool:
        """Whether we are asked to end. Raises EndedElsewhereError, InfraError."""
        end = self.halves.rendezvous / run_folder.END
        if end.exists():
            code, _, sentence = end.read_text().partition("\n")
            if code.strip() not in ("", "0"):
                raise EndedElsewhereError(int(code), sentence.strip())
            return True
        self.lease.check()
        if self.partner is not None:
            self.partner.check()
        return False


def _partner(config: Config, meeting: Path, name: str) -> Partner:
    slurm = config.slurm or Slurm()
    servers = name == "train"
    return Partner(
        meeting,
        "runtime" if servers else "train",
        nodes=slurm.runtime.nodes if servers else config.hardware.nodes,
        seconds=slurm.lease_seconds,
        wait_seconds=slurm.wait_seconds,
    )


def _tell(run_dir: Path, attempt: int, error: SkiffError) -> None:
    """Why we have ended, unless another part of the run has ended before."""
    if isinstance(error, EndedElsewhereError):
        return
    events.emit(run_dir, "error", what=str(error))
    end = run_folder.meeting(run_dir, attempt) / run_folder.END
    if not end.exists():
        code = SAVED if isinstance(error, LostError) else error.exit_code
        write_atomic(end, f"{code}\n{error}\n")


def _serve_alone(lookout: Lookout) -> int:
    """A server without a trainer, whose begin and end are those of the run."""
    run_dir = lookout.halves.run_dir
    code, reason = INTERRUPTED, "interrupted"
    events.emit(run_dir, "phase_begin", name="serve")
    try:
        return _serve(lookout)
    except SkiffError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        attempt = lookout.halves.attempt
        events.emit(run_dir, "finished", exit_code=code, reason=reason, attempt=attempt)


def _serve(lookout: Lookout) -> int:
    halves, restarts = lookout.halves, 0
    try:
        # What has failed elsewhere is said there.
        with contextlib.suppress(EndedElsewhereError), in_order(halves):
            _make_image(halves.config)
            halves.start_runtime()
            wait_ready(halves)
            while not lookout.check():
                if halves.running["runtime"].returncode is not None:
                    restarts += 1
                    restart_runtime(halves, restarts)
                time.sleep(POLL_SECONDS)
    finally:
        if halves.config.runtime.backend == "podman":
            _remove_leftovers(halves.run_dir)
    return 0


def _remove_leftovers(run_dir: Path) -> None:
    try:
        remove_leftovers(run_dir / STATE_FOLDER / socket.gethostname())
    except InfraError as error:  # must not hide why the half has ended
        events.emit(run_dir, "error", what=f"sandboxes may be left on this node: {error}")


def _make_image(config: Config) -> None:
    specs = (*config.tasks.train, *config.tasks.validation)
    if config.runtime.backend == "podman" and any(
        spec.partition(":")[0] in BUILT_HERE for spec in specs
    ):
        ensure_sandbox_image()


def _train(lookout: Lookout) -> int:
    halves = lookout.halves
    code, reason = INTERRUPTED, "interrupted"
    try:
        with in_order(halves):
            _wait_server(lookout)
            halves.start("train", "--attempt", str(halves.attempt))
            limit = TimeLimit(halves)
            while (ended := halves.running["train"].returncode) is None:
                if lookout.check():
                    raise KeyboardInterrupt
                if limit.passed():
                    ended = SAVED
                    break
                time.sleep(POLL_SECONDS)
            # As a shell counts: 128 and the signal's number.
            code = ended if ended >= 0 else 128 - ended
            if code == KILLED:
                raise _killed("trainer", halves)
            if code == SAVED:
                reason = limit.reason()
            elif code == 0:
                reason = "done"
            else:
                reason = last_error(halves.log("train")) or f"exit code {code}"
    except SkiffError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        remove_abandoned()  # by a trainer that was killed
        finish(halves.run_dir, halves.attempt, code, reason, Console(stderr=True))
    if code != 0:
        print(reason if code == SAVED else f"error: {reason}", file=sys.stderr)
    return code


def _help_train(lookout: Lookout, number: int) -> int:
    """A further node of the trainer, until the first one has ended."""
    halves = lookout.halves
    with in_order(halves):
        halves.start("train", "--attempt", str(halves.attempt), "--node", str(number))
        while (code := halves.running["train"].returncode) is None:
            if lookout.check():
                return 0
            time.sleep(POLL_SECONDS)
    if code in (KILLED, -signal.SIGKILL):
        raise _killed(f"node {number} of the trainer", halves)
    log = halves.log("train")
    raise InfraError(
        last_error(log) or f"ended with exit code {code}",
        where=f"node {number} of the trainer",
        remedy=f"log: {log}",
    )


def _killed(where: str, halves: Halves) -> LostError:
    return LostError(
        "was killed by SIGKILL: by the kernel, when the memory is used up, or by somebody",
        where=where,
        remedy="it goes on from its last checkpoint; where the memory was used up, ask for more"
        f" (slurm.trainer.memory); log: {halves.log('train')}",
    )


def _wait_server(lookout: Lookout) -> None:
    """Until a server of this attempt answers, where one is to come."""
    if lookout.partner is None:
        return
    halves = lookout.halves
    servers = Servers(halves.run_dir, halves.rendezvous, halves.attempt)
    while not servers.ready():
        if lookout.check():
            raise KeyboardInterrupt
        time.sleep(POLL_SECONDS)


if __name__ == "__main__":
    main()
