"""What happens before an engine starts: the root is filled, or the start ends with a reason."""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.kernels.ladder import Rung
from skiff.kernels.manifest import Facts
from skiff.kernels.start import bake, missing_to_compile, prepare

from .conftest import Pack


@pytest.fixture
def ours(facts: Facts, tmp_path: Path) -> Facts:
    """The facts of a start whose root is an empty folder."""
    root = tmp_path / "root"
    root.mkdir()
    return facts.model_copy(update={"root": str(root)})


def test_a_fitting_pack_is_copied_to_the_root(ours: Facts, pack: Pack, tmp_path: Path) -> None:
    made = pack(ours)
    choice = prepare(ours, packs=made.path.parent, layer=tmp_path / "none")
    assert choice.rung is Rung.PACK
    assert Path(ours.root, "triton/KEY/kernel.cubin").read_bytes() == b"code of p"
    assert choice.environment["TRITON_CACHE_DIR"] == f"{ours.root}/triton"


def test_without_a_pack_the_layer_is(ours: Facts, pack: Pack) -> None:
    layer = pack(ours, kind="architecture", name="layer")
    choice = prepare(ours, packs=None, layer=layer.path)
    assert choice.rung is Rung.ARCHITECTURE
    assert Path(ours.root, "triton/KEY/kernel.cubin").read_bytes() == b"code of layer"


def test_with_neither_the_image_compiles_into_an_empty_root(
    ours: Facts, stubs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(stubs))
    monkeypatch.delenv("CC", raising=False)
    choice = prepare(ours, packs=None, layer=tmp_path / "none")
    assert (choice.rung, choice.keep) == (Rung.COMPILE, True)
    assert list(Path(ours.root).iterdir()) == []


def test_a_pack_without_a_readable_manifest_is_passed_over(
    ours: Facts, pack: Pack, tmp_path: Path
) -> None:
    whole, torn = pack(ours), pack(ours, name="torn")
    (torn.path / "manifest.json").write_text("{")
    assert prepare(ours, packs=whole.path.parent, layer=tmp_path / "none").rung is Rung.PACK


def test_an_unreadable_pack_is_told_of(
    ours: Facts, pack: Pack, stubs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(stubs))
    monkeypatch.delenv("CC", raising=False)
    torn = pack(ours, name="torn")
    (torn.path / "manifest.json").write_text("{")
    choice = prepare(ours, packs=torn.path.parent, layer=tmp_path / "none")
    assert choice.line.startswith("kernels: compile: pack torn: the file: Invalid JSON")


def test_a_bake_compiles_although_the_image_has_a_layer(
    ours: Facts, stubs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(stubs))
    monkeypatch.delenv("CC", raising=False)
    assert bake(ours).rung is Rung.COMPILE
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(InfraError, match="compiling lacks a C compiler"):
        bake(ours)


def test_a_root_that_is_not_bound_is_an_error(facts: Facts, pack: Pack, tmp_path: Path) -> None:
    ours = facts.model_copy(update={"root": str(tmp_path / "nowhere")})
    made = pack(ours)
    with pytest.raises(InfraError, match=r"--bind FOLDER:.*nowhere"):
        prepare(ours, packs=made.path.parent, layer=tmp_path / "none")


def test_each_missing_part_of_a_compilation_is_named(
    stubs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = {"PATH": os.environ["PATH"], "TRITON_LIBCUDA_PATH": str(stubs)}
    assert missing_to_compile(whole) == []
    assert missing_to_compile(whole | {"PATH": str(tmp_path)}) == ["a C compiler (gcc or clang)"]
    assert missing_to_compile(whole | {"CC": "/none"}) == ["a C compiler (/none)"]
    libcuda = ["libcuda.so.1 in TRITON_LIBCUDA_PATH"]
    assert missing_to_compile(whole | {"TRITON_LIBCUDA_PATH": str(tmp_path)}) == libcuda
    assert missing_to_compile({"PATH": whole["PATH"]}) == libcuda
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert missing_to_compile(whole) == [f"Python's headers ({tmp_path / 'Python.h'})"]
