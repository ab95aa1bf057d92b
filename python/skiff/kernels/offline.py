"""Triton compiles for a GPU that is not there: its driver compiles each call and launches nothing.

Under `offline_gpu(90)` a program that launches Triton kernels on CPU tensors fills Triton's cache
with what the same calls need on a GPU of capability 9.0: the specialisation comes from the call
itself, by Triton's own binder. Launchers and `cuda_utils` are built as on a GPU, linked against the
stub of libcuda. Not covered: results (they are never computed), autotuning (it takes times), and
kernels whose caller asks the GPU for its properties.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.driver import CudaLauncher, CudaUtils
from triton.runtime.build import _build
from triton.runtime.driver import driver

from skiff.errors import InfraError

_SHARED_MEMORY = 227 << 10  # bytes a block may have on the largest GPU; only checked, never used


@contextmanager
def offline_gpu(capability: int) -> Iterator[None]:
    """Let Triton compile for `capability` (80, 90, 120, ...) and launch nothing."""
    before = driver._active  # `active` would look for a GPU
    driver.set_active(_OfflineDriver(capability))
    try:
        yield
    finally:
        driver._active = before


@contextmanager
def recorded(*, build: bool = False) -> Iterator[Seen]:
    """What is asked of the cache while the block runs.

    Without `build` no launcher and no `cuda_utils` is built: InfraError names the first one that is
    missing. Missing kernels need no C compiler; they are compiled and recorded.
    """
    seen = Seen()
    listener, builder = knobs.compilation.listener, knobs.build.impl
    knobs.compilation.listener = seen.kernel
    knobs.build.impl = _build_without_path if build else _refuse
    try:
        yield seen
    finally:
        knobs.compilation.listener, knobs.build.impl = listener, builder


@dataclass
class Seen:
    """How many kernels were asked for, and the names of those that were not in the cache."""

    asked: int = 0
    missed: list[str] = field(default_factory=list)

    def kernel(self, *, src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        """Triton's compilation listener."""
        self.asked += 1
        if not cache_hit:
            self.missed.append(f"{src.name} for sm{metadata['target'].arch}")


def load_stub(folder: Path) -> None:
    """Load the driver, or else the stub of it, so that modules linked with it load."""
    with contextlib.suppress(OSError):  # its libraries would not find all that they want in a stub
        ctypes.CDLL("libcuda.so.1", mode=ctypes.RTLD_GLOBAL)
        return
    try:
        ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
    except OSError as error:
        raise InfraError(
            str(error), where=str(folder), remedy="compile containers/libcuda_stub.c"
        ) from error


def _build_without_path(name: str, source: str, folder: str, *rest: list[str]) -> str:
    """Triton's own builder; but the name of its temporary folder is not left in the file."""
    knobs.build.impl = None
    try:
        return str(_build(name, source, folder, *rest, [f"-ffile-prefix-map={folder}=."]))
    finally:
        knobs.build.impl = _build_without_path


def _refuse(name: str, *_: Any) -> str:
    raise InfraError(f"no {name} in the cache", where=str(knobs.cache.dir))


class _OfflineDriver:
    """The part of Triton's driver that compiling and launching use."""

    def __init__(self, capability: int) -> None:
        CudaUtils()  # builds or loads `cuda_utils`, as every process with a GPU does
        self.capability = capability
        self.utils = _OfflineUtils()
        self.launcher_cls = _build_launcher

    def get_current_device(self) -> int:
        # Triton remembers a kernel's binder by device: one device for each architecture.
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


class _OfflineUtils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": _SHARED_MEMORY}

    def load_binary(
        self, name: str, kernel: bytes, shared: int, device: int
    ) -> tuple[int, int, int, int, int]:
        """Module, function, registers, spills, threads a block may have."""
        return 0, 0, 0, 0, 1024


def _build_launcher(source: Any, metadata: Any) -> Callable[..., None]:
    CudaLauncher(source, metadata)
    return _launch_nothing


def _launch_nothing(*_: Any) -> None:
    """Stands for the launch."""
