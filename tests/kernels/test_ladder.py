"""Each trap of a compiled cache, and the rung and the words that a start answers with."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from skiff.errors import InfraError
from skiff.kernels.ladder import Choice, Compiled, Rung, choose
from skiff.kernels.manifest import Facts, differences, here, host_platform, read_manifest
from skiff.kernels.tree import place
from skiff.kernels.variables import Mode, environment

from .conftest import Pack

NOTHING = ["everything"]  # a node where nothing can be compiled

# What differs at the start -> the words of the log line, and whether the layer still serves.
TRAPS: dict[str, tuple[dict[str, Any], str, bool]] = {
    "another GPU": (
        {"device": "NVIDIA H100 80GB HBM3"},
        "device is 'NVIDIA H200' there and 'NVIDIA H100 80GB HBM3' here",
        True,
    ),
    "a MIG slice": ({"device": "NVIDIA H200 MIG 3g.71gb"}, "device is 'NVIDIA H200' there", True),
    "another model path": ({"model": "/scratch/qwen3-8b"}, "model is '/models/qwen3-8b'", True),
    "another shape": (
        {"engine": {"max_model_len": 32768, "max_num_seqs": 64, "tensor_parallel_size": 1}},
        "engine.max_model_len is 16384 there and 32768 here",
        True,
    ),
    "another HOME": (
        {"environment": {"VLLM_CONFIG_ROOT": "/home/bob/.config/vllm"}},
        "environment.VLLM_CONFIG_ROOT is '/opt/skiff/kernels/vllm-config' there",
        True,
    ),
    "another image": ({"image": "sha256:2222"}, "image is 'sha256:1111' there", True),
    "another version": (
        {"versions": {"torch": "2.11.0", "triton": "3.7.1", "vllm": "0.24.0"}},
        "versions.triton is '3.6.0' there and '3.7.1' here",
        False,
    ),
    "a moved root": ({"root": "/tmp/kernels"}, "root is '/opt/skiff/kernels' there", False),
    "file(1) absent": (
        {"platform": "x86_64,Linux,64bit,"},
        "platform is 'x86_64,Linux,64bit,ELF' there and 'x86_64,Linux,64bit,' here",
        False,
    ),
}


@pytest.mark.parametrize("trap", TRAPS)
@pytest.mark.parametrize("missing", [[], ["a C compiler (gcc or clang)"]])
def test_a_trap_is_named_and_takes_the_next_rung(
    trap: str, missing: list[str], facts: Facts, pack: Pack
) -> None:
    change, words, layer_serves = TRAPS[trap]
    packs, layer = [pack(facts)], pack(facts, kind="architecture", name="layer")
    ours = facts.model_copy(update=change)
    if layer_serves or not missing:
        choice = choose(packs, layer, ours, missing=missing)
        assert choice.rung is (Rung.ARCHITECTURE if layer_serves else Rung.COMPILE)
        told = choice.line
    else:
        with pytest.raises(InfraError) as caught:
            choose(packs, layer, ours, missing=missing)
        told = str(caught.value)
        assert "compiling lacks a C compiler" in told
    assert words in told
    assert "pack p:" in told


def test_a_pack_that_fits_is_used_as_it_was_made(facts: Facts, pack: Pack) -> None:
    made = pack(facts)
    choice = choose([made], None, facts, missing=NOTHING)
    assert (choice.rung, choice.tree, choice.compilation) == (Rung.PACK, made.tree, {})
    assert choice.line == "kernels: pack: p holds for this start"
    assert not choice.keep


def test_the_fitting_pack_of_several_is_found(facts: Facts, pack: Pack) -> None:
    others = [pack(facts.model_copy(update={"model": f"/models/{n}"}), name=n) for n in "ab"]
    fitting = pack(facts, name="c")
    assert choose([*others, fitting], None, facts, missing=NOTHING).tree == fitting.tree


def test_the_nearest_pack_is_the_one_that_is_told_of(facts: Facts, pack: Pack) -> None:
    far = pack(facts.model_copy(update={"model": "/m", "device": "NVIDIA A100"}), name="far")
    near = pack(facts.model_copy(update={"model": "/m"}), name="near")
    choice = choose([far, near], None, facts, missing=[])
    assert "pack near: model is '/m' there" in choice.line
    assert "far" not in choice.line


def test_a_damaged_pack_is_not_used(facts: Facts, pack: Pack) -> None:
    made = pack(facts)
    _kernel(made).write_bytes(b"something else")
    choice = choose([made], pack(facts, kind="architecture", name="layer"), facts, missing=NOTHING)
    assert choice.rung is Rung.ARCHITECTURE
    assert "pack p: triton/KEY/kernel.cubin is damaged" in choice.line


def test_a_file_too_few_or_too_many_is_damage(facts: Facts, pack: Pack) -> None:
    made = pack(facts)
    _kernel(made).rename(_kernel(made).with_name("other.cubin"))
    choice = choose([made], None, facts, missing=[])
    assert "kernel.cubin is missing (and 1 more)" in choice.line


def test_a_damaged_layer_is_not_used(facts: Facts, pack: Pack) -> None:
    layer = pack(facts, kind="architecture", name="layer")
    _kernel(layer).write_bytes(b"")
    choice = choose([], layer, facts, missing=[])
    assert choice.rung is Rung.COMPILE
    assert "there is no pack; architecture layer: triton/KEY/kernel.cubin is damaged" in choice.line


def test_a_layer_without_this_architecture_is_not_used(facts: Facts, pack: Pack) -> None:
    layer = pack(facts, kind="architecture", name="layer")
    ours = facts.model_copy(update={"capability": "12.0", "device": "NVIDIA RTX PRO 6000"})
    choice = choose([], layer, ours, missing=[])
    assert "architecture layer: capability is '8.0, 9.0' there and '12.0' here" in choice.line
    assert choice.keep


def test_nothing_at_all_stops_with_every_reason(facts: Facts) -> None:
    with pytest.raises(InfraError) as caught:
        choose([], None, facts, missing=NOTHING)
    assert "no pack; architecture layer: the image has none; compiling lacks everything" in str(
        caught.value
    )
    assert caught.value.exit_code == 3


def test_every_rung_keeps_cuda_graphs(facts: Facts, pack: Pack) -> None:
    from vllm.config import CompilationConfig, CompilationMode, CUDAGraphMode

    layer = pack(facts, kind="architecture", name="layer")
    choices: list[Choice] = [
        choose([pack(facts)], layer, facts, missing=NOTHING),
        choose([], layer, facts, missing=NOTHING),
        choose([], None, facts, missing=[]),
    ]
    assert [choice.rung for choice in choices] == list(Rung)
    assert [choice.compilation for choice in choices][::2] == [{}, {}]
    without = CompilationConfig(**choices[1].compilation)
    assert without.mode == CompilationMode.NONE
    assert without.cudagraph_mode == CUDAGraphMode.FULL_DECODE_ONLY
    assert not without.cudagraph_mode.requires_piecewise_compilation()


def test_file_is_part_of_the_host(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The trap itself: the same function that Triton's key calls."""
    from triton.runtime.build import platform_key

    with_file = host_platform()
    assert shutil.which("file")
    assert with_file.endswith(",ELF")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host_platform() == with_file.removesuffix("ELF")
    platform_key.cache_clear()
    try:
        assert platform_key() == host_platform()
    finally:
        platform_key.cache_clear()


def test_a_manifest_comes_back_as_it_was_written(facts: Facts, pack: Pack) -> None:
    made = pack(facts)
    assert read_manifest(made.path) == made.manifest
    assert made.manifest.facts == facts


def test_a_cut_manifest_is_an_error_that_names_it(facts: Facts, pack: Pack) -> None:
    made = pack(facts)
    path = made.path / "manifest.json"
    path.write_text(path.read_text()[:40])
    with pytest.raises(InfraError, match=r"manifest\.json"):
        read_manifest(made.path)


def test_a_tree_goes_only_to_an_empty_folder(facts: Facts, pack: Pack, tmp_path: Path) -> None:
    made, root = pack(facts), tmp_path / "root"
    with pytest.raises(InfraError, match="no empty folder"):
        place(made.tree, root)
    root.mkdir()
    place(made.tree, root)
    assert (root / "triton/KEY/kernel.cubin").read_bytes() == b"code of p"
    with pytest.raises(InfraError, match="no empty folder"):
        place(made.tree, root)


def test_facts_of_this_process_fit_themselves_and_name_another_home(tmp_path: Path) -> None:
    ours = here({"HOME": "/home/ann"}, model="/m")
    assert ours.versions["triton"] == "3.6.0"
    assert differences(ours, here({"HOME": "/home/ann"}, model="/m")) == []
    fields = [one.field for one in differences(ours, here({"HOME": "/home/bob"}, model="/m"))]
    assert fields == ["environment.VLLM_CONFIG_ROOT", "environment.VLLM_XLA_CACHE_PATH"]
    table = environment(Mode.RUN)
    assert here({"HOME": "/home/ann"} | table) == here({"HOME": "/home/bob"} | table)


def _kernel(compiled: Compiled) -> Path:
    return compiled.tree / "triton/KEY/kernel.cubin"
