"""Compiled kernels of one start of the trainer: which are used, kept as a pack, or proved enough.

    Use.LADDER   a run: the best that is there (skiff.kernels.ladder)
    Use.BAKE     everything is compiled, and kept as RUN/pack
    Use.PROOF    RUN/pack is used, and anything that it lacks is an error

Only where the root's folder is: the launcher binds one into the image. A trainer from a clone has
the caches of its libraries. Not covered: what verl and vLLM would read of the GPU themselves, such
as its memory; it is in no key.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from skiff import events
from skiff.attempts import attempt_folder
from skiff.config import Config
from skiff.errors import InfraError
from skiff.kernels.gpu import Gpu, first_gpu
from skiff.kernels.ladder import Choice, Rung
from skiff.kernels.manifest import Facts, here
from skiff.kernels.packs import keep
from skiff.kernels.proof import findings, witnesses
from skiff.kernels.start import bake, prepare
from skiff.kernels.variables import LAYER, REFUSE, ROOT, Mode, environment

PACK = "pack"  # of a bake, in its run folder
_LOCKS = Path(__file__).parents[3] / "locks"
# A bake and its proof each take every step: nothing is saved, nothing resumed.
_ALONE = ["trainer.save_freq=-1", "trainer.resume_mode=disable"]


class Use(Enum):
    """What a start does with compiled kernels."""

    LADDER = "ladder"
    BAKE = "bake"
    PROOF = "proof"


@dataclass(frozen=True)
class Kernels:
    """What a start of verl gets, and what is done when it has ended.

    kept_as       where a start that compiles everything keeps it as a pack
    overrides     verl's arguments
    environment   variables of its process tree
    """

    use: Use
    run_dir: Path
    kept_as: Path | None = None
    overrides: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    facts: Facts | None = None
    choice: Choice | None = None
    driver: str = ""
    notes: Path | None = None

    def ended(self) -> None:
        """After a start that ended well: keep what was compiled, or check that nothing was.

        Raises InfraError when a proof fails.
        """
        if self.facts is None or self.choice is None:
            return
        root = Path(self.facts.root)
        if self.use is Use.PROOF and self.notes is not None:
            if found := findings(self.notes, root, self.choice.files):
                more = f" (and {len(found) - 5} more)" if len(found) > 5 else ""
                raise InfraError(
                    "; ".join(found[:5]) + more,
                    where=f"kernels of {self.run_dir / PACK}",
                    remedy=f"all of it: {self.notes}",
                )
            events.emit(self.run_dir, "kernels", what="proof: nothing was compiled")
        # Another run may have been quicker, or a damaged pack may be in the way.
        elif self.choice.keep and self.kept_as is not None and not self.kept_as.exists():
            self.kept_as.parent.mkdir(parents=True, exist_ok=True)
            profile = self.run_dir / "config.toml"
            keep(root, self.kept_as, self.facts, profile=profile, driver=self.driver)
            events.emit(self.run_dir, "kernels", what=f"kept as the pack {self.kept_as}")


def place_kernels(
    config: Config, run_dir: Path, model: str, *, attempt: int, use: Use = Use.LADDER
) -> Kernels:
    """Choose the kernels of a start and put them in place, on this node.

    `model` is the policy's folder. Raises InfraError when no rung holds, when there is no GPU, and
    when a proof has no pack that fits.
    """
    if config.hardware.platform != "cuda":
        return Kernels(use, run_dir)
    if not ROOT.is_dir():
        line = f"kernels: none: {ROOT} is not bound, so the libraries compile into their own caches"
        if use is not Use.LADDER:
            raise InfraError(line, where="kernels", remedy="run it from the trainer's image")
        _tell(run_dir, line)
        return Kernels(use, run_dir)
    gpu = first_gpu()
    facts = facts_of(config, model, gpu, os.environ | environment(Mode.RUN))
    if use is Use.BAKE:
        choice = bake(facts)
    else:
        packs = config.kernels.packs if use is Use.LADDER else run_dir
        choice = prepare(facts, packs=packs, layer=LAYER if use is Use.LADDER else run_dir / "none")
    _tell(run_dir, choice.line)
    variables, notes = choice.environment, None
    if use is Use.PROOF:
        if choice.rung is not Rung.PACK:
            raise InfraError(choice.line, where="kernels", remedy="make the pack again")
        notes = attempt_folder(run_dir, attempt) / "proof"
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # as clean_environment
        variables = witnesses(notes, path, root=ROOT, refuse=_refuse())
    return Kernels(
        use,
        run_dir,
        kept_as=_kept_as(config, run_dir, facts, use),
        overrides=[
            *_overrides(choice, config.hardware.tensor_parallel),
            *([] if use is Use.LADDER else _ALONE),
        ],
        environment=variables,
        facts=facts,
        choice=choice,
        driver=gpu.driver,
        notes=notes,
    )


def facts_of(config: Config, model: str, gpu: Gpu, environ: Mapping[str, str]) -> Facts:
    """What decides whether a start of this config on that GPU finds compiled code."""
    hardware, rollout, train = config.hardware, config.rollout, config.train
    shape = json.loads((Path(model) / "config.json").read_bytes())
    return here(
        environ,
        image=image_digest(),
        device=gpu.name,
        capability=gpu.capability,
        model=model,
        engine={
            "algorithm": train.algorithm,
            "attention": hardware.attention,
            "context_tokens": config.model.context_tokens,
            "dtype": hardware.dtype,
            "engine_sequences": hardware.engine_sequences,
            "gpus": hardware.nodes * hardware.gpus_per_node,
            "kl_loss": train.kl_coefficient > 0,
            "micro_batch": hardware.micro_batch,
            "model_shape": hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest(),
            "offload": hardware.offload,
            "prompt_tokens": rollout.prompt_tokens,
            "response_tokens": rollout.response_tokens,
            "tensor_parallel": hardware.tensor_parallel,
        },
    )


def image_digest() -> str:
    """Of the locks that this image, or clone, was made from."""
    digest = hashlib.sha256()
    for name in ("cuda.txt", "debian.txt"):
        digest.update((_LOCKS / name).read_bytes())
    return f"sha256:{digest.hexdigest()}"


def _kept_as(config: Config, run_dir: Path, facts: Facts, use: Use) -> Path | None:
    if use is Use.BAKE:
        return run_dir / PACK
    packs = config.kernels.packs
    return packs / pack_name(config, facts) if packs and use is Use.LADDER else None


def pack_name(config: Config, facts: Facts) -> str:
    """A folder's name for people: model, GPU, and a digest of everything that keys read."""
    words = f"{Path(config.model.path).name}-{facts.device}".lower().replace(" ", "-")
    plain = "".join(one for one in words if one.isalnum() or one in "._-")
    return f"{plain}-{hashlib.sha256(facts.model_dump_json().encode()).hexdigest()[:12]}"


def _overrides(choice: Choice, tensor_parallel: int) -> list[str]:
    """verl's arguments for what the engine compiles, where that is not vLLM's own choice."""
    compilation = dict(choice.compilation)
    if tensor_parallel > 1:
        # FlashInfer's all-reduce: made by nvcc at the start, which no image holds.
        compilation["pass_config"] = {"fuse_allreduce_rms": False}
    if not compilation:
        return []
    # Quoted as Hydra wants it; verl reads a string as JSON.
    text = json.dumps(json.dumps(compilation))
    return [f"+actor_rollout_ref.rollout.engine_kwargs.vllm.compilation_config={text}"]


def _refuse() -> Path:
    """The image's, or this clone's."""
    return REFUSE if REFUSE.exists() else _LOCKS.parent / "containers" / REFUSE.name


def _tell(run_dir: Path, line: str) -> None:
    events.emit(run_dir, "kernels", what=line)
    print(line, flush=True)
