"""One half of a run on a node that Slurm has given it: `python -m skiff.launch.half runtime|train
--run RUN --attempt NN`. The job's script starts it by srun, once per node.

It starts what `skiff run` starts on one machine: the entry point of this clone or of its image, and
on the host podman's service for a runtime server in an image. When the entry point has ended, a
signal arrives or RUN/rendezvous/NN/end is there, all that was started is ended in order. The exit
status is the entry point's; that of a trainer that was ended is 130.

The halves find each other in RUN/rendezvous/NN: what an earlier attempt has left is not looked at.
Not covered: a half that waits for nothing, because the other one's node is gone (leases).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

from rich.console import Console

from skiff import events
from skiff.config import Config
from skiff.errors import SkiffError
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch import run_folder
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

POLL_SECONDS = 1.0  # each look is a call to the shared file system
BUILT_HERE = ("shell", "synthetic")  # tasks in the image that is made where it is absent


def main() -> None:
    """The program."""
    parser = argparse.ArgumentParser(description="Run one half of a run on this node.")
    parser.add_argument("half", choices=("runtime", "train"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--attempt", type=int, required=True)
    given = parser.parse_args()
    try:
        code = run_half(given.half, given.run, given.attempt)
    except SkiffError as error:
        events.emit(given.run, "error", what=str(error))
        print(f"error: {error}", file=sys.stderr)
        code = error.exit_code
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def run_half(name: str, run_dir: Path, attempt: int, *, entrypoints: Path = ENTRYPOINTS) -> int:
    """Run it to its end and return its exit status. Raises SkiffError, KeyboardInterrupt."""
    config = run_folder.read_config(run_dir)
    node = os.environ.get("SLURMD_NODENAME", "")
    meeting = run_folder.meeting(run_dir, attempt)
    halves = Halves(config, run_dir, attempt, entrypoints, node=node, meeting=meeting)
    return _serve(halves) if name == "runtime" else _train(halves)


def _serve(halves: Halves) -> int:
    restarts = 0
    with in_order(halves):
        _make_image(halves.config)
        halves.start_runtime()
        wait_ready(halves)
        while not _asked_to_end(halves):
            if halves.running["runtime"].returncode is not None:
                restarts += 1
                restart_runtime(halves, restarts)
            time.sleep(POLL_SECONDS)
    return 0


def _make_image(config: Config) -> None:
    specs = (*config.tasks.train, *config.tasks.validation)
    if config.runtime.backend == "podman" and any(
        spec.partition(":")[0] in BUILT_HERE for spec in specs
    ):
        ensure_sandbox_image()


def _train(halves: Halves) -> int:
    code, reason = INTERRUPTED, "interrupted"
    try:
        with in_order(halves):
            halves.start("train", "--attempt", str(halves.attempt))
            while (ended := halves.running["train"].returncode) is None:
                if _asked_to_end(halves):
                    raise KeyboardInterrupt
                time.sleep(POLL_SECONDS)
            # As a shell counts: 128 and the signal's number.
            code = ended if ended >= 0 else 128 - ended
            reason = "done" if code == 0 else last_error(halves.log("train")) or f"exit code {code}"
    except SkiffError as error:
        code, reason = error.exit_code, str(error)
        raise
    finally:
        finish(halves.run_dir, halves.attempt, code, reason, Console(stderr=True))
    if code != 0:
        print(f"error: {reason}", file=sys.stderr)
    return code


def _asked_to_end(halves: Halves) -> bool:
    return (halves.rendezvous / run_folder.END).exists()


if __name__ == "__main__":
    main()
