"""Proof that nothing was compiled: three witnesses that do not know of each other.

    refused   programs that took the place of every compiler on PATH, and say who called them
    kernels   Triton's listener in every process of vLLM and verl (`register`, by their plugins)
    tree      the files of the root afterwards are those that the pack had

`witnesses` gives the variables of the process tree, `findings` what they saw. Not covered: what a
driver assembles from PTX; `CUDA_CACHE_DISABLE` would let that happen anew, and no file shows it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from skiff.kernels.tree import damage
from skiff.kernels.variables import REFUSE, Mode, environment

COMPILERS = ("c++", "cc", "clang", "clang++", "cuda-gcc", "g++", "gcc", "ninja", "nvcc", "nvc++")
REFUSED_VARIABLE = "SKIFF_REFUSED"  # read by containers/refuse-compiler
KERNELS_VARIABLE = "SKIFF_COMPILED_KERNELS"


def witnesses(folder: Path, path: str, *, root: Path, refuse: Path = REFUSE) -> dict[str, str]:
    """The variables of a proof; `path` is PATH as it was, `folder` is new and gets their notes."""
    shadows = folder / "bin"
    shadows.mkdir(parents=True)
    for name in COMPILERS:
        (shadows / name).symlink_to(refuse)
    return {
        **environment(Mode.PROOF, root=root),
        "CC": str(refuse),
        "FLASHINFER_NVCC": str(refuse),
        "PATH": f"{shadows}:{path}",
        REFUSED_VARIABLE: str(folder / "refused"),
        KERNELS_VARIABLE: str(folder / "kernels"),
    }


def findings(folder: Path, root: Path, files: Mapping[str, str]) -> list[str]:
    """A sentence for each thing that was compiled; empty when the proof holds."""
    found = [f"a compiler was called: {line}" for line in _lines(folder / "refused")]
    found += [f"Triton compiled {line}" for line in _lines(folder / "kernels")]
    return found + [f"in the tree: {line}" for line in damage(root, files)]


def _lines(path: Path) -> list[str]:
    return sorted(set(path.read_text().splitlines())) if path.exists() else []


def register() -> None:
    """Note each kernel that Triton compiles in this process. Does nothing outside of a proof.

    An entry point of vLLM's plugins; verl's workers import this module as one of theirs.
    """
    note = os.environ.get(KERNELS_VARIABLE)
    if not note:
        return
    from triton import knobs

    def compiled(*, src: Any, metadata: dict[str, Any], cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            with open(note, "a") as file:  # short lines: appends of several processes do not mix
                file.write(f"{src.name} for {json.dumps(metadata['target'].arch)}\n")

    knobs.compilation.listener = compiled


register()  # at import, too: verl only imports its plugins
