"""verl finds our CPU platform and engines by its own plugin points. Each check needs its own
process, as verl chooses its platform once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

PLATFORM = """
import json
from verl.plugin.platform import get_platform
from verl.utils.device import get_device_name, get_nccl_backend, get_torch_device, is_cuda_available

platform = get_platform()
device = get_torch_device()
device.empty_cache()
import skiff.train.engine_cpu
from verl.workers.engine.base import EngineRegistry

print(json.dumps({
    "platform": type(platform).__name__,
    "device": get_device_name(),
    "backend": get_nccl_backend(),
    "memory": device.memory_allocated(),
    "resource": platform.ray_resource_name(),
    "engines": {
        kind: EngineRegistry.get_engine_cls(kind, "fsdp2").__name__
        for kind in ("language_model", "value_model")
    },
}))
"""


def look(**variables: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLATFORM],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_cpu_platform_is_used_when_asked_for() -> None:
    assert look(VERL_PLATFORM="cpu") == {
        "platform": "PlatformCPU",
        "device": "cpu",
        "backend": "gloo",
        "memory": 0,
        "resource": "GPU",
        "engines": {
            "language_model": "CpuEngineWithLMHead",
            "value_model": "CpuEngineWithValueHead",
        },
    }
