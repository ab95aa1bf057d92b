"""Triton's cache without a GPU: filled for six architectures, loaded where there is no compiler."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from skiff.kernels.architecture import CAPABILITIES
from skiff.kernels.manifest import read_manifest
from skiff.kernels.model_infos import MODELS

from .conftest import CONTAINERS

HERE = Path(__file__).parent
ALL = ["--capability", *map(str, CAPABILITIES)]


def _run(
    script: str, *arguments: str | Path, path: str = os.environ["PATH"], **variables: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, HERE / script, *arguments],
        env={"PATH": path, "HOME": "/nonexistent"} | variables,
        capture_output=True,
        text=True,
        timeout=250,
    )


@pytest.fixture(scope="session")
def no_compiler(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PATH without any compiler, but with file(1)."""
    folder = tmp_path_factory.mktemp("bin")
    file = shutil.which("file")
    assert file
    (folder / "file").symlink_to(file)
    return folder


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("root")


@pytest.fixture(scope="session")
def layer(root: Path, stubs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """vLLM's kernels for every architecture, made at `root`."""
    folder = tmp_path_factory.mktemp("image") / "layer"
    places = ["--root", root, "--stubs", stubs, "--vocabulary", "151936"]
    done = _run("cuda_vllm.py", "build", folder, *places, *ALL)
    assert done.returncode == 0, done.stderr
    return folder


def test_the_layer_says_what_it_holds(layer: Path) -> None:
    manifest = read_manifest(layer)
    assert manifest.kind == "architecture"
    assert manifest.capabilities == ("8.0", "8.6", "8.9", "9.0", "10.0", "12.0")
    for kernel in ("_compute_slot_mapping_kernel", "_post_update_kernel", "_ranks_kernel"):
        assert _architectures(layer, kernel) == {f"sm{one}" for one in CAPABILITIES}
    modules = [Path(name).name.partition(".")[0] for name in manifest.files if ".so" in name]
    assert modules.count("cuda_utils") == 1
    assert modules.count("__triton_launcher") >= 10
    infos = [Path(name).stem for name in manifest.files if name.startswith("vllm/modelinfos/")]
    assert "vllm-model_executor-models-qwen3-Qwen3ForCausalLM" in infos
    assert len(infos) == len(MODELS)


def test_it_loads_in_a_process_without_a_compiler(
    layer: Path, root: Path, stubs: Path, no_compiler: Path
) -> None:
    places = ["--root", root, "--stubs", stubs, "--vocabulary", "151936"]
    done = _run("cuda_vllm.py", "verify", layer, *places, *ALL, path=str(no_compiler))
    assert done.returncode == 0, done.stderr
    assert "loaded, none compiled" in done.stdout


def _architectures(layer: Path, kernel: str) -> set[str]:
    found = layer.glob(f"tree/triton/*/{kernel}.json")
    return {json.loads(path.read_text())["arch"] for path in found}


@pytest.fixture(scope="session")
def small(stubs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with one kernel for two architectures: what the traps are sprung on."""
    folder = tmp_path_factory.mktemp("small") / "cache"
    done = _add("build", folder, stubs)
    assert done.returncode == 0, done.stderr
    return folder


def _add(
    command: str, cache: Path, stubs: Path, **variables: str
) -> subprocess.CompletedProcess[str]:
    places = {"TRITON_CACHE_DIR": str(cache), "TRITON_LIBCUDA_PATH": str(stubs)}
    return _run("add_kernel.py", command, stubs, **(places | variables))


def _load(cache: Path, stubs: Path, path: Path, **variables: str) -> tuple[int, str]:
    done = _add("load", cache, stubs, path=str(path), **variables)
    return done.returncode, done.stdout + done.stderr


def test_the_cache_is_found_at_its_place(small: Path, stubs: Path, no_compiler: Path) -> None:
    assert _load(small, stubs, no_compiler) == (0, "2 asked, missed []\n")


def test_another_home_is_the_same(
    small: Path, stubs: Path, no_compiler: Path, tmp_path: Path
) -> None:
    assert _load(small, stubs, no_compiler, HOME=str(tmp_path))[1] == "2 asked, missed []\n"


def test_a_moved_cache_is_compiled_again(
    small: Path, stubs: Path, no_compiler: Path, tmp_path: Path
) -> None:
    """Why the root is one path for ever. Launchers and cuda_utils do move."""
    kept = small.with_name("kept")
    small.rename(kept)
    try:
        moved = shutil.copytree(kept, tmp_path / "moved")
        code, told = _load(moved, stubs, no_compiler)
    finally:
        kept.rename(small)
    assert (code, told) == (0, "2 asked, missed ['add for sm80', 'add for sm90']\n")


def test_without_file_the_modules_are_not_found(small: Path, stubs: Path, tmp_path: Path) -> None:
    code, told = _load(small, stubs, tmp_path)
    assert code == 1
    assert f"InfraError: {small}: no cuda_utils in the cache" in told


def test_a_damaged_module_is_not_loaded(
    small: Path, stubs: Path, no_compiler: Path, tmp_path: Path
) -> None:
    copy = shutil.copytree(small, tmp_path / "copy")
    (module,) = copy.glob("*/cuda_utils*.so")
    module.write_bytes(b"")
    code, told = _load(copy, stubs, no_compiler)
    assert code == 1
    assert "no cuda_utils in the cache" in told


def test_a_refused_compiler_names_what_it_was_asked(
    stubs: Path, no_compiler: Path, tmp_path: Path
) -> None:
    """The third witness of a proof: CC of Mode.PROOF."""
    refused = tmp_path / "refused"
    done = _add(
        "build",
        tmp_path / "cache",
        stubs,
        CC=str(CONTAINERS / "refuse-compiler"),
        SKIFF_REFUSED=str(refused),
    )
    assert done.returncode == 1
    assert "cuda_utils.c" in refused.read_text()
    assert "refused to compile" in done.stderr


def test_a_layer_is_the_same_bytes_twice(small: Path, stubs: Path, tmp_path: Path) -> None:
    """Images are reproducible; a cache that is made at the same place has to be, too."""
    kept = small.with_name("kept")
    small.rename(kept)
    try:
        assert _add("build", small, stubs).returncode == 0
        assert _contents(small) == _contents(kept)
    finally:
        shutil.rmtree(small, ignore_errors=True)
        kept.rename(small)


def _contents(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}
