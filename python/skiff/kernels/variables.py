"""Every variable that says where compiled code lies, or that is part of its key: one table.

The image's environment, the making of a pack and the proof that nothing is compiled are all
rendered from it. `python -m skiff.kernels.variables run` prints it as shell lines.

Not covered: variables that verl and Ray set in their workers (`VLLM_DP_RANK` and others). They are
the same at each start, because a pack is made by the real rollout path.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

# Where the tree of compiled code lies while a process runs, in every container. One path for ever:
# Triton writes absolute paths into its cache. The launcher binds a folder of this node to it.
ROOT = Path("/opt/skiff/kernels")
# Where an image keeps its architecture layer: a tree that was made at ROOT.
LAYER = Path("/opt/skiff/architecture")
STUBS = Path("/opt/skiff/stubs")
REFUSE = Path("/opt/skiff/containers/refuse-compiler")


class Mode(Enum):
    """What the process is for."""

    BAKE = "bake"  # fills a tree: compilers are welcome
    RUN = "run"  # a training run: compiles what its tree lacks, if the image can
    PROOF = "proof"  # compiles nothing, or fails


@dataclass(frozen=True)
class Variable:
    """One variable of the environment.

    value     a literal; `{root}` is the tree, `{stubs}` the folder of the stub of libcuda
    keyed     True when the value is part of some cache's key: then it is the same in every mode
    why       what goes wrong without it
    modes     where it is set
    """

    name: str
    value: str
    why: str
    keyed: bool = False
    modes: frozenset[Mode] = frozenset(Mode)


_PROOF = frozenset({Mode.PROOF})

TABLE: tuple[Variable, ...] = (
    # Triton
    Variable(
        "TRITON_CACHE_DIR", "{root}/triton", "kernels, launchers and cuda_utils; else in HOME"
    ),
    Variable(
        "TRITON_LIBCUDA_PATH", "{stubs}", "else ldconfig is asked, which knows no host's driver"
    ),
    Variable(
        "TRITON_DEFAULT_FP_FUSION", "1", "is in the key; a later Triton changes it", keyed=True
    ),
    Variable(
        "TRITON_CACHE_AUTOTUNING", "1", "autotuning is timed once; vLLM sets it, trainers do not"
    ),
    # vLLM
    Variable("VLLM_CACHE_ROOT", "{root}/vllm", "compiled models; else in HOME"),
    Variable("VLLM_DISABLE_COMPILE_CACHE", "0", "verl sets 1, and nothing is kept", keyed=True),
    Variable(
        "VLLM_USE_MEGA_AOT_ARTIFACT", "1", "else each start wires up every layer anew", keyed=True
    ),
    Variable("VLLM_CONFIG_ROOT", "{root}/vllm-config", "vLLM 0.24 hashes it: HOME", keyed=True),
    Variable("VLLM_NO_USAGE_STATS", "1", "writes a file of its own at each start"),
    Variable("VLLM_XLA_CACHE_PATH", "{root}/vllm-xla", "vLLM 0.24 hashes it: HOME", keyed=True),
    Variable(
        "VLLM_USE_FLASHINFER_SAMPLER", "0", "FlashInfer's sampler is made by nvcc", keyed=True
    ),
    # PyTorch
    Variable("TORCHINDUCTOR_CACHE_DIR", "{root}/inductor", "the trainer's functions; else in /tmp"),
    # FlashInfer and what lies below it
    Variable("FLASHINFER_WORKSPACE_BASE", "{root}/flashinfer", "written at import; else in HOME"),
    Variable("TVM_FFI_CACHE_DIR", "{root}/tvm-ffi", "else in HOME"),
    # Kernels of some models
    Variable("DG_JIT_CACHE_DIR", "{root}/deep-gemm", "FP8 products; else in HOME"),
    Variable("TILELANG_CACHE_DIR", "{root}/tilelang", "else in HOME"),
    Variable("QUACK_CACHE_DIR", "{root}/quack", "else in the folder of temporary files"),
    Variable("NUMBA_CACHE_DIR", "{root}/numba", "else beside the sources, which are read-only"),
    Variable("CUDA_CACHE_PATH", "{root}/cuda", "what the driver assembles; else in HOME"),
    # Proof. Not here: TORCHINDUCTOR_STRICT_STATIC_CUDA_LAUNCHER and CXX. Inductor hashes both: a
    # proof with them would miss what a run finds. proof.py hides g++ and the others on PATH.
    Variable("CC", str(REFUSE), "names the caller and fails", modes=_PROOF),
    Variable("FLASHINFER_NVCC", str(REFUSE), "names the caller and fails", modes=_PROOF),
    Variable("FLASHINFER_DISABLE_JIT", "1", "a missing module is an error", modes=_PROOF),
    Variable("VLLM_FORCE_AOT_LOAD", "1", "a failed load is an error", modes=_PROOF),
    Variable("CUDA_CACHE_DISABLE", "1", "the driver assembles nothing unseen", modes=_PROOF),
)

# What vLLM's key leaves out, of what Skiff or a site may set (vllm/envs.py, compile_factors).
_NOT_KEYED = frozenset(
    {
        "VLLM_CACHE_ROOT",
        "VLLM_DO_NOT_TRACK",
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_FORCE_AOT_LOAD",
        "VLLM_HOST_IP",
        "VLLM_LOGGING_CONFIG_PATH",
        "VLLM_LOGGING_LEVEL",
        "VLLM_NO_USAGE_STATS",
        "VLLM_PORT",
        "VLLM_WORKER_MULTIPROC_METHOD",
    }
)


def environment(mode: Mode, *, root: Path = ROOT, stubs: Path = STUBS) -> dict[str, str]:
    """The variables of a process that works on the tree at `root`."""
    places = {"root": str(root), "stubs": str(stubs)}
    return {one.name: one.value.format(**places) for one in TABLE if mode in one.modes}


def key_variables(environ: Mapping[str, str]) -> dict[str, str]:
    """What of a process's environment enters a key, defaults that come from HOME included."""
    home = environ.get("HOME", "/")
    found = {
        "VLLM_CONFIG_ROOT": f"{home}/.config/vllm",
        "VLLM_XLA_CACHE_PATH": f"{home}/.cache/vllm/xla_cache",
    }
    keyed = {one.name for one in TABLE if one.keyed} | {"CUDA_HOME"}
    return found | {
        name: value
        for name, value in environ.items()
        if name in keyed or (name.startswith("VLLM_") and name not in _NOT_KEYED)
    }


def shell_lines(mode: Mode) -> str:
    """`export NAME=VALUE` lines, each after its reason."""
    values = environment(mode)
    lines = [
        f"# {one.why}\nexport {one.name}={shlex.quote(values[one.name])}\n"
        for one in TABLE
        if one.name in values
    ]
    return "".join(lines)


if __name__ == "__main__":
    sys.stdout.write(shell_lines(Mode(sys.argv[1])))
