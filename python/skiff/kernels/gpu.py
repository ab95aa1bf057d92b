"""What the driver says of the first GPU: `python -m skiff.kernels.gpu` prints it as JSON.

Asked in a process of its own, because a process that has spoken to the driver must not fork, and of
the driver itself, because importing torch takes seconds. The name is the one that torch tells and
Inductor hashes; a MIG slice has its own. Not covered: nodes with GPUs of several kinds.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
from dataclasses import asdict, dataclass

from skiff.errors import InfraError

SECONDS = 60.0  # the first call on a node without the persistence daemon takes some
# CUdevice_attribute
_MAJOR, _MINOR = 75, 76


@dataclass(frozen=True)
class Gpu:
    """One GPU or MIG slice. `capability` as "9.0"; `driver` is the CUDA version it supports."""

    name: str
    capability: str
    driver: str


def first_gpu() -> Gpu:
    """The first GPU that this job may use. Raises InfraError when there is none."""
    command = [sys.executable, "-m", "skiff.kernels.gpu"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"the driver gave no answer within {SECONDS:g} s", where="GPU") from error
    if done.returncode != 0:
        raise InfraError(
            (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1],
            where="GPU",
            remedy="ask Slurm for one (gres); in an image --nv brings the driver",
        )
    return Gpu(**json.loads(done.stdout))


def _ask() -> Gpu:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise SystemExit(f"no NVIDIA driver: {error}") from error
    name, version, device = ctypes.create_string_buffer(256), ctypes.c_int(), ctypes.c_int()
    _call(driver.cuInit, 0)
    _call(driver.cuDeviceGet, ctypes.byref(device), 0)
    _call(driver.cuDeviceGetName, name, len(name), device)
    _call(driver.cuDriverGetVersion, ctypes.byref(version))
    numbers = []
    for attribute in (_MAJOR, _MINOR):
        number = ctypes.c_int()
        _call(driver.cuDeviceGetAttribute, ctypes.byref(number), attribute, device)
        numbers.append(number.value)
    supported = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Gpu(name.value.decode(), ".".join(map(str, numbers)), supported)


def _call(function: ctypes._NamedFuncPointer, *arguments: object) -> None:
    if (code := function(*arguments)) != 0:
        raise SystemExit(f"{function.__name__} failed with CUDA error {code}")


if __name__ == "__main__":
    print(json.dumps(asdict(_ask())))
