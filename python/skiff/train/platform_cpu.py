"""verl platform plugin for machines without a GPU (`VERL_PLATFORM=cpu`).

Loaded by verl through the entry-point group `verl.plugins`. verl ships nvidia, huawei and amd; this
adds `cpu` by its own registry, so verl itself stays unpatched. Not covered: speed. It exists so
that the same `main_ppo` runs on a laptop and in CI.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from verl.plugin.platform.platform_base import PlatformBase
from verl.plugin.platform.platform_manager import PlatformRegistry


def _device_module() -> ModuleType:
    """torch.cpu plus the memory functions that verl's workers call, which mean nothing here."""
    module = ModuleType("skiff_cpu_device")
    module.__dict__.update({name: getattr(torch.cpu, name) for name in dir(torch.cpu)})
    for name in ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "synchronize"):
        module.__dict__[name] = lambda *_, **__: None
    for name in (
        "max_memory_allocated",
        "max_memory_reserved",
        "memory_allocated",
        "memory_reserved",
    ):
        module.__dict__[name] = lambda *_, **__: 0
    module.__dict__["mem_get_info"] = lambda *_, **__: (0, 0)
    module.__dict__["get_device_name"] = lambda *_, **__: "cpu"
    module.__dict__["get_rng_state"] = lambda *_, **__: torch.get_rng_state()
    module.__dict__["set_rng_state"] = lambda state, *_, **__: torch.set_rng_state(state)
    return module


_DEVICE_MODULE = _device_module()


@PlatformRegistry.register(platform="cpu")
class PlatformCPU(PlatformBase):
    """The host's processor as verl's accelerator. One Ray "GPU" stands for one trainer rank."""

    @property
    def device_name(self) -> str:
        return "cpu"

    @property
    def vendor_name(self) -> str:
        return "cpu"

    @property
    def device_module(self) -> ModuleType:
        return _DEVICE_MODULE

    def is_available(self) -> bool:
        return True

    def is_platform_available(self, use_smi_check: bool = False) -> bool:
        # Never chosen by detection: an image with both plugins must not train on the CPU because a
        # driver is missing. VERL_PLATFORM=cpu asks for it by name.
        return False

    def current_device(self) -> str:  # goes straight into tensor.to(...)
        return "cpu"

    def device_count(self) -> int:
        return 1

    def set_device(self, device_index: int) -> None:
        pass

    def synchronize(self, device_index: int | None = None) -> None:
        pass

    def manual_seed(self, seed: int) -> None:
        torch.manual_seed(seed)

    def manual_seed_all(self, seed: int) -> None:
        torch.manual_seed(seed)

    def set_allocator_settings(self, settings: str) -> None:
        pass

    def empty_cache(self) -> None:
        pass

    def get_device_capability(self, device_index: int = 0) -> tuple[int | None, int | None]:
        return None, None

    def communication_backend_name(self) -> str:
        """gloo; and, in a verl worker, the place where its process group begins.

        verl asks for this name to write "cpu:gloo,<device>:<name>", which with device "cpu" names
        one device twice, and torch refuses that. verl skips the creation when a group exists, so
        the group is made here, just before. It is also the first call in a worker at which verl's
        engines can be imported, hence the registration of the CPU engines.
        """
        if os.environ.get("WG_BACKEND") == "ray" and "RANK" in os.environ:
            import skiff.train.engine_cpu  # noqa: F401  (registers)

            if not torch.distributed.is_initialized():
                torch.distributed.init_process_group(
                    backend="gloo",
                    rank=int(os.environ["RANK"]),
                    world_size=int(os.environ["WORLD_SIZE"]),
                    init_method=os.environ.get("DIST_INIT_METHOD"),
                )
        return "gloo"

    def visible_devices_envvar(self) -> str:
        return "CUDA_VISIBLE_DEVICES"

    @contextlib.contextmanager
    def nvtx_range(self, msg: str) -> Iterator[None]:
        yield

    def profiler_start(self) -> None:
        pass

    def profiler_stop(self) -> None:
        pass

    def ray_resource_name(self) -> str:
        return "GPU"

    def ray_noset_envvars(self) -> list[str]:
        return ["RAY_EXPERIMENTAL_NOSET_CUDA_VISIBLE_DEVICES"]

    def is_ipc_supported(self) -> bool:
        return False  # verl then hands weights over by shared memory

    def cudart(self) -> Any:
        return None
