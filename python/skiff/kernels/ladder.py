"""Which compiled code a start uses: the first rung of a ladder that holds, and why it is that one.

    pack           everything was compiled for this GPU, model and engine
    architecture   the image's kernels for this architecture, and CUDA graphs of decoding: no model
                   is compiled, so nothing has to be
    compile        the image's compiler; the tree can be kept as a pack afterwards
    (stop)         an error that names what is missing

There is no rung without CUDA graphs: an engine is never made eager in silence. Pure but for the
reading of digests. Not covered: whether the pack loads (that is the proof's part).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from skiff.errors import InfraError
from skiff.kernels.manifest import ARCHIVE, TREE, Facts, Manifest, check
from skiff.kernels.tree import damage, digest
from skiff.kernels.variables import Mode, environment


class Rung(Enum):
    """What a start relies on, the best first."""

    PACK = "pack"
    ARCHITECTURE = "architecture"
    COMPILE = "compile"


@dataclass(frozen=True)
class Compiled:
    """A folder with a manifest and a tree: a pack, or an image's architecture layer."""

    path: Path
    manifest: Manifest

    @property
    def tree(self) -> Path:
        """A squashfs file or a folder."""
        return self.path / (ARCHIVE if self.manifest.archive else TREE)

    def damage(self) -> list[str]:
        """What is wrong with what lies there, a sentence each; a squashfs file is not unpacked."""
        if not self.manifest.archive:
            return damage(self.tree, self.manifest.files)
        whole = self.tree.is_file() and digest(self.tree) == self.manifest.archive
        return [] if whole else [f"{ARCHIVE} is damaged"]


@dataclass(frozen=True)
class Choice:
    """What to start the engine with.

    tree          to be copied to the root before the start; None: it stays empty
    files         sha256 of each of its files
    compilation   vLLM's `compilation_config`; empty: as the profile has it
    keep          True when the filled tree is worth keeping
    line          for the log: the rung, and why not a better one
    """

    rung: Rung
    tree: Path | None
    files: dict[str, str]
    compilation: dict[str, object]
    environment: dict[str, str]
    keep: bool
    line: str


def choose(
    packs: Sequence[Compiled],
    layer: Compiled | None,
    ours: Facts,
    *,
    missing: Sequence[str],
    unreadable: Sequence[str] = (),
) -> Choice:
    """The best rung for a start with the facts `ours`.

    `missing` is what compiling would lack here; empty when it can be done. `unreadable` tells of
    packs that are none. Raises InfraError when no rung holds; it names that, and the first
    difference of the nearest pack and of the layer.
    """
    reasons = list(unreadable)
    refused = [(pack, _against(pack, ours)) for pack in packs]
    for pack, reason in refused:
        if not reason:
            return _choice(Rung.PACK, ours, pack, f"{pack.path.name} holds for this start")
    if refused:
        nearest, found = min(refused, key=lambda pair: len(pair[1]))
        reasons.append(f"pack {nearest.path.name}: {_told(found)}")
    elif not unreadable:
        reasons.append("there is no pack")
    lacking = _against(layer, ours) if layer else ["the image has none"]
    if layer and not lacking:
        return _choice(Rung.ARCHITECTURE, ours, layer, "; ".join(reasons))
    reasons.append(f"architecture layer: {_told(lacking)}")
    if not missing:
        return _choice(Rung.COMPILE, ours, None, "; ".join(reasons))
    raise InfraError(
        "; ".join([*reasons, f"compiling lacks {', '.join(missing)}"]),
        where="kernels",
        remedy="make a pack for this GPU, model and engine, or use an image with a compiler",
    )


def _against(compiled: Compiled, ours: Facts) -> list[str]:
    """Why `compiled` does not serve. Files are read only where the manifest fits."""
    return [str(one) for one in check(compiled.manifest, ours)] or compiled.damage()


def _told(reasons: Sequence[str]) -> str:
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return reasons[0] + more


def _choice(rung: Rung, ours: Facts, found: Compiled | None, reason: str) -> Choice:
    # Mode 0 is "no compilation". Full graphs need none, piecewise ones do.
    decoding: dict[str, object] = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
    return Choice(
        rung=rung,
        tree=found.tree if found else None,
        files=found.manifest.files if found else {},
        compilation=decoding if rung is Rung.ARCHITECTURE else {},
        environment=environment(Mode.RUN, root=Path(ours.root)),
        keep=rung is Rung.COMPILE,
        line=f"kernels: {rung.value}: {reason}",
    )
