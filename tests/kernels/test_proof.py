"""The witnesses of a proof: refused compilers, Triton's listener, and the tree."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from skiff.kernels.proof import findings, witnesses
from skiff.kernels.tree import digests

from .conftest import CONTAINERS

KERNEL = """
import triton, triton.language as tl
from skiff.kernels import proof
from skiff.kernels.offline import load_stub, offline_gpu
from pathlib import Path
import sys, torch
@triton.jit
def add(x, n, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.store(x + i, tl.load(x + i) + n)
load_stub(Path(sys.argv[1]))
with offline_gpu(90):
    add[(1,)](torch.zeros(16), 2, BLOCK=16)
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "root"
    (root / "triton").mkdir(parents=True)
    (root / "triton" / "kernel.cubin").write_bytes(b"code")
    return root


def _witnesses(tmp_path: Path, root: Path) -> tuple[Path, dict[str, str]]:
    notes = tmp_path / "notes"
    refuse = CONTAINERS / "refuse-compiler"
    return notes, witnesses(notes, "/usr/bin:/bin", root=root, refuse=refuse)


def test_a_start_that_compiles_nothing_is_proved(tmp_path: Path, root: Path) -> None:
    notes, _ = _witnesses(tmp_path, root)
    (root / "flashinfer.log").write_text("a note of a start is no compiled code")
    assert findings(notes, root, digests(root)) == []


@pytest.mark.parametrize("compiler", ["gcc", "g++", "nvcc", "ninja"])
def test_every_compiler_is_refused_and_told_of(compiler: str, tmp_path: Path, root: Path) -> None:
    notes, variables = _witnesses(tmp_path, root)
    done = subprocess.run(["sh", "-c", f"{compiler} -c module.c"], env=variables, check=False)
    assert done.returncode == 1
    assert findings(notes, root, digests(root)) == ["a compiler was called: -c module.c"]


def test_a_kernel_that_triton_compiles_is_named(tmp_path: Path, root: Path, stubs: Path) -> None:
    """Also in the tree. The modules were built before: a proof that lacks one ends at once."""
    notes, variables = _witnesses(tmp_path, root)
    script = tmp_path / "kernel.py"
    script.write_text(KERNEL)
    command = [sys.executable, script, stubs]
    variables["TRITON_LIBCUDA_PATH"] = str(stubs)
    unproved = {**variables, "PATH": "/usr/bin:/bin", "CC": "gcc"}
    subprocess.run([*command], env=unproved, check=True)  # fills the tree
    files = digests(root)
    noted = notes / "kernels"
    assert noted.read_text() == "add for 90\n"
    noted.unlink()
    subprocess.run(command, env=variables, check=True)
    assert findings(notes, root, files) == []

    script.write_text(KERNEL.replace("+ n", "- n"))
    subprocess.run(command, env=variables, check=True)
    found = findings(notes, root, files)
    assert found[0] == "Triton compiled add for 90"
    assert any("add.cubin is not part of it" in one for one in found)


def test_a_changed_file_is_found(tmp_path: Path, root: Path) -> None:
    notes, _ = _witnesses(tmp_path, root)
    files = digests(root)
    (root / "triton" / "kernel.cubin").write_bytes(b"other code")
    assert findings(notes, root, files) == ["in the tree: triton/kernel.cubin is damaged"]


def test_the_key_of_inductor_is_that_of_a_run(tmp_path: Path, root: Path) -> None:
    """Inductor hashes CXX: a proof that set it would compile what a run finds."""
    _, variables = _witnesses(tmp_path, root)
    assert "CXX" not in variables
