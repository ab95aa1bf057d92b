"""The one seam where nvidia-smi is started: what the GPUs of this node are doing, and its driver.

A value that a GPU or its permissions do not give ("[N/A]") is None. Not covered: GPUs of other
makers, and the memory of a single MIG slice: nvidia-smi tells only that of the whole GPU, and then
no utilisation.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from skiff.errors import InfraError

PROGRAM = "nvidia-smi"
SECONDS = 60.0  # the first call of a node without persistence mode wakes the driver
_FIELDS = (
    *("index", "name", "memory.used", "memory.total", "utilization.gpu", "temperature.gpu"),
    "ecc.errors.uncorrected.volatile.total",
)


@dataclass(frozen=True)
class Gpu:
    """One GPU at one moment. Memory in MiB, utilisation in percent, temperature in Celsius."""

    index: int
    name: str
    used_mib: float | None
    total_mib: float | None
    busy: float | None
    celsius: float | None
    ecc_errors: float | None


@dataclass(frozen=True)
class Driver:
    """`cuda`: the newest CUDA that the driver serves, as (major, minor)."""

    version: str
    cuda: tuple[int, int]


def read_gpus() -> list[Gpu]:
    """Every GPU that this process may see. Raises InfraError with nvidia-smi's words."""
    out = _call([f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"])
    return [_gpu(line) for line in out.splitlines() if line.strip()]


def read_driver() -> Driver:
    """The driver of this node. Raises InfraError when there is none."""
    out = _call([])
    version = re.search(r"Driver Version: +([\d.]+)", out)
    cuda = re.search(r"CUDA Version: +(\d+)\.(\d+)", out)
    if version is None or cuda is None:
        raise InfraError("names no driver and CUDA version", where=PROGRAM)
    return Driver(version[1], (int(cuda[1]), int(cuda[2])))


def _gpu(line: str) -> Gpu:
    words = [word.strip() for word in line.split(",")]
    if len(words) != len(_FIELDS):
        raise InfraError(f"is not understood: {line!r}", where=PROGRAM)
    index, name, *rest = words
    return Gpu(int(index), name, *(_number(word) for word in rest))


def _number(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:  # [N/A], [Insufficient Permissions], [Unknown Error]
        return None


def _call(arguments: Sequence[str]) -> str:
    try:
        done = subprocess.run(
            [PROGRAM, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
    except FileNotFoundError:
        raise InfraError(
            "is not here: no NVIDIA driver, or an image that was started without --nv",
            where=PROGRAM,
            remedy="use a GPU node; `skiff` starts images with --nv when hardware.platform is cuda",
        ) from None
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no answer within {SECONDS:g} s", where=PROGRAM) from error
    if done.returncode != 0:
        words = (done.stdout + done.stderr).strip() or f"exit {done.returncode}"
        raise InfraError(words, where=PROGRAM)
    return done.stdout
