"""What a process does before it starts an engine: choose compiled code, and put it in place.

Not covered: reading the GPU's name and capability. The caller gives them, as torch tells them,
because asking takes a CUDA context, which must not be made in a process that forks.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from skiff.kernels.ladder import Choice, choose
from skiff.kernels.manifest import Facts
from skiff.kernels.packs import read_pack, read_packs
from skiff.kernels.tree import empty, place
from skiff.kernels.variables import LAYER


def prepare(ours: Facts, *, packs: Path | None, layer: Path = LAYER) -> Choice:
    """Choose for a start with the facts `ours` and fill its root.

    `packs` is a folder of packs. The caller logs `line`, sets `environment` before Ray and torch
    start, and gives `compilation` to the engine. Raises InfraError when no rung holds, when the
    root is no empty folder that can be written, or when a manifest cannot be read.
    """
    choice = choose(
        read_packs(packs) if packs else [],
        read_pack(layer) if layer.is_dir() else None,
        ours,
        missing=missing_to_compile(os.environ),
    )
    if choice.tree:
        place(choice.tree, Path(ours.root))
    else:
        empty(Path(ours.root))
    return choice


def missing_to_compile(environ: Mapping[str, str]) -> list[str]:
    """What Triton would lack to build a module; empty when it could."""
    headers = Path(sysconfig.get_paths()["include"], "Python.h")
    libcuda = Path(environ.get("TRITON_LIBCUDA_PATH", ""), "libcuda.so.1")
    path = environ.get("PATH", "")
    names = [environ["CC"]] if "CC" in environ else ["gcc", "clang"]
    missing = []
    if not any(shutil.which(name, path=path) for name in names):
        missing.append(f"a C compiler ({' or '.join(names)})")
    if not headers.is_file():
        missing.append(f"Python's headers ({headers})")
    if not libcuda.is_absolute() or not libcuda.is_file():
        missing.append("libcuda.so.1 in TRITON_LIBCUDA_PATH")
    return missing
