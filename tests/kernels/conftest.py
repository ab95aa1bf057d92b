"""A stub of libcuda, facts of a start, and packs made of small files."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.kernels.ladder import Compiled
from skiff.kernels.manifest import TREE, Facts, Manifest, write_manifest
from skiff.kernels.tree import digests

CONTAINERS = Path(__file__).parents[2] / "containers"
Pack = Callable[..., Compiled]


@pytest.fixture(scope="session")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that was made as the image's."""
    folder = tmp_path_factory.mktemp("stubs")
    library = folder / "libcuda.so.1"
    command = ["gcc", "-shared", "-o", library, "-Wl,-soname,libcuda.so.1"]
    subprocess.run([*command, CONTAINERS / "libcuda_stub.c"], check=True)
    return folder


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that tells of an A100's MIG slice."""
    folder = tmp_path_factory.mktemp("driver")
    source = Path(__file__).with_name("fake_libcuda.c")
    command = ["gcc", "-shared", "-fPIC", "-o", folder / "libcuda.so.1", source]
    subprocess.run(command, check=True)
    return folder


@pytest.fixture
def facts() -> Facts:
    """A start of an engine on an H200, in an image."""
    return Facts(
        versions={"torch": "2.11.0", "triton": "3.6.0", "vllm": "0.24.0"},
        platform="x86_64,Linux,64bit,ELF",
        root="/opt/skiff/kernels",
        image="sha256:1111",
        device="NVIDIA H200",
        capability="9.0",
        model="/models/qwen3-8b",
        engine={"max_model_len": 16384, "max_num_seqs": 64, "tensor_parallel_size": 1},
        environment={"VLLM_CONFIG_ROOT": "/opt/skiff/kernels/vllm-config"},
    )


@pytest.fixture
def pack(tmp_path: Path) -> Pack:
    """`pack(facts)`: a whole pack; `kind="architecture"` makes a layer."""

    def make(facts: Facts, *, kind: str = "device", name: str = "p", made: float = 0) -> Compiled:
        folder = tmp_path / "packs" / name
        kernel = folder / TREE / "triton" / "KEY" / "kernel.cubin"
        kernel.parent.mkdir(parents=True)
        kernel.write_bytes(b"code of " + name.encode())
        manifest = Manifest(
            kind=kind,
            facts=facts,
            capabilities=("8.0", "9.0") if kind == "architecture" else (),
            made=made,
            files=digests(folder / TREE),
        )
        write_manifest(folder, manifest)
        return Compiled(folder, manifest)

    return make
