"""The architecture layer: what every engine of an image needs from Triton, made without a GPU.

    python -m skiff.kernels.architecture build LAYER    fills the root and moves it to LAYER
    python -m skiff.kernels.architecture verify LAYER   loads it all from the root, builds nothing

The layer holds `cuda_utils` and a launcher for each signature, which Triton 3.6 makes with the C
compiler, the cubins of vLLM's own kernels (engine_calls.py) for each architecture, and what vLLM
asks of common models' classes (model_infos.py). The tree is made at the root because Triton's cache
names absolute paths; `verify` copies it there first.

Not covered: FlashInfer's modules (the sampler that needs one is off), flash-attn's cross entropy
(few images hold flash-attn), and what PyTorch compiles for vLLM and verl: a pack has those.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

from skiff.errors import InfraError, SkiffError
from skiff.kernels.manifest import TREE, Manifest, here, read_manifest, write_manifest
from skiff.kernels.model_infos import inspect_models
from skiff.kernels.tree import damage, digests, empty, place
from skiff.kernels.variables import LAYER, ROOT, STUBS, Mode, environment

# A100; A10, A40, RTX 30; L4, L40, RTX 40; H100, H200; B200; RTX 50, RTX PRO 6000
CAPABILITIES = (80, 86, 89, 90, 100, 120)
# Qwen3 and small Qwen2.5; Qwen2.5 from 7 B; Llama 3; Mistral's Tekken
VOCABULARIES = (151936, 152064, 128256, 131072)
PARTS = ("triton", "vllm/modelinfos")  # of the root; what else imports leave is no part of a layer


def build(layer: Path, root: Path, capabilities: Sequence[int], vocabularies: Sequence[int]) -> int:
    """Make `layer` by filling the empty folder `root`; returns the number of kernels.

    Needs a C compiler, and `environment(Mode.BAKE)` before torch and Triton are imported.
    """
    empty(root)
    _, missed = _call(capabilities, vocabularies, build=True)
    inspect_models()
    tree = layer / TREE
    for part in PARTS:
        (tree / part).parent.mkdir(parents=True, exist_ok=True)
        shutil.move(root / part, tree / part)
    for left in root.iterdir():  # the root of an image has to be empty
        shutil.rmtree(left) if left.is_dir() else left.unlink()
    manifest = Manifest(
        kind="architecture",
        facts=here(os.environ, root=root),
        capabilities=tuple(f"{one // 10}.{one % 10}" for one in capabilities),
        made=float(os.environ.get("SOURCE_DATE_EPOCH", time.time())),
        files=digests(tree),
    )
    write_manifest(layer, manifest)
    return len(missed)


def verify(
    layer: Path, root: Path, capabilities: Sequence[int], vocabularies: Sequence[int]
) -> int:
    """Load every kernel of `layer` from `root`; returns how many. Builds nothing.

    Needs `environment(Mode.PROOF)` before torch and Triton are imported. Raises InfraError that
    names what was not found, or which file changed.
    """
    place(layer / TREE, root)
    asked, missed = _call(capabilities, vocabularies, build=False)
    wrong = [f"{name} was compiled" for name in missed]
    wrong += [f"{model} was inspected" for model in inspect_models()]
    manifest = read_manifest(layer)
    for part in PARTS:
        wrong += damage(root / part, _below(manifest, part))
    if wrong:
        raise InfraError("; ".join(wrong), where=str(layer), remedy="build the image again")
    return asked


def _below(manifest: Manifest, part: str) -> dict[str, str]:
    names = (name for name in manifest.files if name.startswith(f"{part}/"))
    return {name.removeprefix(f"{part}/"): manifest.files[name] for name in names}


def _call(
    capabilities: Sequence[int], vocabularies: Sequence[int], *, build: bool
) -> tuple[int, list[str]]:
    """How many kernels were asked for, and which were missing; a process per architecture.

    The first one goes alone: all of them want `cuda_utils` and the same launchers.
    """
    from skiff.kernels import engine_calls  # noqa: F401  imported once, before the processes part

    calls = [(capability, tuple(vocabularies), build) for capability in capabilities]
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("fork")) as pool:
        results = [pool.submit(_call_one, *calls[0]).result()]
        results += pool.map(_call_one, *zip(*calls[1:], strict=True)) if calls[1:] else []
    return sum(asked for asked, _ in results), [name for _, names in results for name in names]


def _call_one(capability: int, vocabularies: Sequence[int], build: bool) -> tuple[int, list[str]]:
    from skiff.kernels.engine_calls import call_kernels, shapes
    from skiff.kernels.offline import offline_gpu, recorded

    with recorded(build=build) as seen, offline_gpu(capability):
        for shape in shapes(vocabularies):
            call_kernels(shape)
    return seen.asked, seen.missed


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one of the commands above. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Triton's part of the architecture layer.")
    parser.add_argument("command", choices=("build", "verify"))
    parser.add_argument("layer", type=Path, nargs="?", default=LAYER)
    parser.add_argument("--root", type=Path, default=ROOT)
    parser.add_argument("--stubs", type=Path, default=STUBS, help="folder of libcuda.so.1")
    parser.add_argument("--capability", type=int, nargs="+", default=CAPABILITIES)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=VOCABULARIES)
    parsed = parser.parse_args(arguments)
    mode, call = (Mode.BAKE, build) if parsed.command == "build" else (Mode.PROOF, verify)
    os.environ |= environment(mode, root=parsed.root, stubs=parsed.stubs)
    # Without it vLLM takes the absence of GPUs for the absence of Triton.
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if call is build:
        os.environ["TRITON_STORE_BINARY_ONLY"] = "1"  # a third of the size; in no key
    from skiff.kernels.offline import load_stub

    try:
        load_stub(parsed.stubs)
        kernels = call(parsed.layer, parsed.root, parsed.capability, parsed.vocabulary)
    except SkiffError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    done = "compiled" if parsed.command == "build" else "loaded, none compiled"
    print(f"{kernels} kernels {done}: {parsed.layer}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
