"""Which kernels a start of the trainer gets, with real files and a driver that tells of a GPU."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.errors import InfraError
from skiff.kernels.packs import read_packs
from skiff.train import kernels
from skiff.train.kernels import PACK, Use, place_kernels

Configured = Callable[..., Config]
DRIVER = Path(__file__).parents[1] / "kernels" / "fake_libcuda.c"
STUB = Path(__file__).parents[2] / "containers" / "libcuda_stub.c"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty root, a GPU, and everything that a compilation needs."""
    for name, source in (("driver", DRIVER), ("stubs", STUB)):
        (tmp_path / name).mkdir()
        library = tmp_path / name / "libcuda.so.1"
        subprocess.run(["gcc", "-shared", "-fPIC", "-o", library, source], check=True)
    monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path / "driver"))
    monkeypatch.setenv("TRITON_LIBCUDA_PATH", str(tmp_path / "stubs"))
    monkeypatch.delenv("CC", raising=False)
    folder = tmp_path / "kernels"
    folder.mkdir()
    monkeypatch.setattr(kernels, "ROOT", folder)
    monkeypatch.setattr(kernels, "LAYER", tmp_path / "no-layer")
    environment = kernels.environment
    monkeypatch.setattr(kernels, "environment", lambda mode: environment(mode, root=folder))
    here = kernels.here
    monkeypatch.setattr(kernels, "here", lambda *a, **k: here(*a, root=folder, **k))
    return folder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    (folder / "attempts" / "01").mkdir(parents=True)
    (folder / "config.toml").write_text("[run]\n")
    return folder


@pytest.fixture
def config(runtime_config: Configured, tmp_path: Path) -> Config:
    return runtime_config(hardware={"platform": "cuda"}, kernels={"packs": str(tmp_path / "packs")})


def _told(run_dir: Path) -> list[str]:
    return [event["what"] for event in events.read(run_dir, "kernels")]


def test_on_cpus_there_is_nothing_to_choose(runtime_config: Configured, run_dir: Path) -> None:
    config = runtime_config(hardware={"platform": "cpu", "dtype": "float32"})
    placed = place_kernels(config, run_dir, "/nowhere", attempt=1)
    assert (placed.overrides, placed.environment) == ([], {})
    placed.ended()
    assert _told(run_dir) == []


def test_outside_of_an_image_a_line_says_so(
    config: Config, run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernels, "ROOT", tmp_path / "absent")
    assert place_kernels(config, run_dir, "/m", attempt=1).environment == {}
    assert "is not bound" in _told(run_dir)[0]
    with pytest.raises(InfraError, match="trainer's image"):
        place_kernels(config, run_dir, "/m", attempt=1, use=Use.BAKE)


def test_what_the_first_start_compiles_the_second_finds(
    config: Config, run_dir: Path, root: Path, tiny_model: str, tmp_path: Path
) -> None:
    first = place_kernels(config, run_dir, tiny_model, attempt=1)
    assert first.environment["TRITON_CACHE_DIR"] == f"{root}/triton"
    (root / "triton").mkdir()
    (root / "triton" / "kernel.cubin").write_bytes(b"code")
    first.ended()
    (pack,) = read_packs(tmp_path / "packs")
    assert pack.manifest.facts.device == "NVIDIA A100-SXM4-40GB MIG 3g.20gb"
    assert (pack.path / "profile.toml").exists()

    (root / "triton" / "kernel.cubin").unlink()
    (root / "triton").rmdir()
    second = place_kernels(config, run_dir, tiny_model, attempt=1)
    assert (root / "triton" / "kernel.cubin").read_bytes() == b"code"
    assert second.overrides == []  # the model is compiled, so nothing is switched off
    second.ended()
    assert len(read_packs(tmp_path / "packs")) == 1
    told = _told(run_dir)
    assert told[0].startswith("kernels: compile: there is no pack; architecture layer: the image")
    assert told[1] == f"kept as the pack {pack.path}"
    assert told[2] == f"kernels: pack: {pack.path.name} holds for this start"


def test_another_model_at_the_same_path_is_another_pack(
    config: Config, run_dir: Path, root: Path, tiny_model: str, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    shape = json.loads(Path(tiny_model, "config.json").read_text())
    (model / "config.json").write_text(json.dumps(shape))
    place_kernels(config, run_dir, str(model), attempt=1).ended()
    (model / "config.json").write_text(json.dumps(shape | {"hidden_size": 128}))
    place_kernels(config, run_dir, str(model), attempt=1)
    assert "engine.model_shape is" in _told(run_dir)[-1]


def test_a_layer_keeps_cuda_graphs_of_decoding(
    config: Config, run_dir: Path, root: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.BAKE).ended()
    made = run_dir / PACK
    manifest = json.loads((made / "manifest.json").read_text())
    layer = {**manifest, "kind": "architecture", "capabilities": ["8.0"]}
    (made / "manifest.json").write_text(json.dumps(layer))
    monkeypatch.setattr(kernels, "LAYER", made)
    placed = place_kernels(config, run_dir, tiny_model, attempt=1)
    (override,) = placed.overrides
    key, _, value = override.partition("=")
    assert key == "+actor_rollout_ref.rollout.engine_kwargs.vllm.compilation_config"
    assert json.loads(json.loads(value)) == {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}


def test_an_engine_over_gpus_does_not_fuse_what_only_nvcc_can_make(
    runtime_config: Configured, run_dir: Path, root: Path, tiny_model: str
) -> None:
    hardware = {"platform": "cuda", "gpus_per_node": 2, "tensor_parallel": 2}
    config = runtime_config(hardware=hardware)
    (override,) = place_kernels(config, run_dir, tiny_model, attempt=1).overrides
    value = json.loads(json.loads(override.partition("=")[2]))
    assert value == {"pass_config": {"fuse_allreduce_rms": False}}


def test_a_proof_without_its_pack_is_refused(
    config: Config, run_dir: Path, root: Path, tiny_model: str
) -> None:
    with pytest.raises(InfraError, match="there is no pack"):
        place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.PROOF)


def test_a_proof_names_what_was_compiled(
    config: Config, run_dir: Path, root: Path, tiny_model: str
) -> None:
    place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.BAKE).ended()
    proof = place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.PROOF)
    subprocess.run(["sh", "-c", "gcc -c late.c"], env=proof.environment, check=False)
    (root / "late.cubin").write_bytes(b"code")
    with pytest.raises(InfraError) as caught:
        proof.ended()
    assert "a compiler was called: -c late.c" in str(caught.value)
    assert "in the tree: late.cubin is not part of it" in str(caught.value)


def test_a_proof_that_holds_says_so(
    config: Config, run_dir: Path, root: Path, tiny_model: str
) -> None:
    place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.BAKE).ended()
    place_kernels(config, run_dir, tiny_model, attempt=1, use=Use.PROOF).ended()
    assert _told(run_dir)[-1] == "proof: nothing was compiled"
