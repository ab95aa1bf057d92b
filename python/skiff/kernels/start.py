"""What a process does before it starts an engine: choose compiled code, and put it in place.

Not covered: the facts themselves, which the caller gives (gpu.py asks the driver), and a start on
several nodes: each one prepares its own root.
"""

from __future__ import annotations

import os
import shutil
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from skiff.errors import InfraError
from skiff.kernels.ladder import Choice, choose
from skiff.kernels.manifest import Facts
from skiff.kernels.packs import pack_folders, read_pack
from skiff.kernels.tree import empty, place
from skiff.kernels.variables import LAYER, Mode, environment


def prepare(ours: Facts, *, packs: Path | None, layer: Path = LAYER) -> Choice:
    """Choose for a start with the facts `ours` and fill its root.

    `packs` is a folder of packs; one whose manifest cannot be read is told of and passed over. The
    caller logs `line`, sets `environment` before Ray and torch start, and gives `compilation` to
    the engine. Raises InfraError when no rung holds or the root is no empty folder that can be
    written.
    """
    found, unreadable = [], []
    for folder in pack_folders(packs) if packs else []:
        try:
            found.append(read_pack(folder))
        except InfraError as error:
            unreadable.append(f"pack {folder.name}: {error.what}")
    choice = choose(
        found,
        read_pack(layer) if layer.is_dir() else None,
        ours,
        missing=missing_to_compile(environment(Mode.RUN) | os.environ),
        unreadable=unreadable,
    )
    if choice.tree:
        place(choice.tree, Path(ours.root))
    else:
        empty(Path(ours.root))
    return choice


def bake(ours: Facts) -> Choice:
    """A start that compiles everything into its empty root. Raises InfraError when it cannot."""
    empty(Path(ours.root))
    missing = missing_to_compile(environment(Mode.BAKE) | os.environ)
    return choose([], None, ours, missing=missing)


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
