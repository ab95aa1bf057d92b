"""A folder of packs: make, list, compare, verify, prune.

A pack is a folder: `manifest.json`, the tree as one squashfs file, and the profile that made it.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from rich.table import Table

from skiff.errors import ConfigError
from skiff.kernels.ladder import Compiled
from skiff.kernels.manifest import (
    ARCHIVE,
    MANIFEST,
    Difference,
    Facts,
    Manifest,
    differences,
    read_manifest,
    write_manifest,
)
from skiff.kernels.tree import damage, digest, digests, place, squash

PROFILE = "profile.toml"


def read_pack(folder: Path) -> Compiled:
    """What is in `folder`, a layer too. Raises InfraError when its manifest cannot be read."""
    return Compiled(folder, read_manifest(folder))


def pack_folders(folder: Path) -> list[Path]:
    """The folders of packs below `folder`, by name; none when it is not there."""
    return sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))


def read_packs(folder: Path) -> list[Compiled]:
    """The packs below `folder`, the newest first."""
    if not folder.is_dir():
        raise ConfigError("is no folder", where=str(folder))
    found = map(read_pack, pack_folders(folder))
    return sorted(found, key=lambda pack: pack.manifest.made, reverse=True)


def keep(
    root: Path, pack: Path, facts: Facts, *, profile: Path | None = None, driver: str = ""
) -> Compiled:
    """Make the folder `pack` from the tree that a start with `facts` has filled at `root`.

    `profile` is kept beside it, so that `verify --strict` can start the same engine again; `driver`
    is what the GPU's driver says of itself. Raises FileExistsError when there is such a folder.
    """
    if pack.exists():
        raise FileExistsError(pack)
    # In the same folder, under a name without a manifest: half a pack is never seen.
    with TemporaryDirectory(prefix=f".{pack.name}.", dir=pack.parent) as made:
        folder = Path(made, pack.name)
        folder.mkdir()
        squash(root, folder / ARCHIVE)
        if profile is not None:
            shutil.copyfile(profile, folder / PROFILE)
        manifest = Manifest(
            kind="device",
            facts=facts,
            driver=driver,
            made=time.time(),
            files=digests(root),
            archive=digest(folder / ARCHIVE),
        )
        write_manifest(folder, manifest)
        folder.rename(pack)
    return Compiled(pack, manifest)


def packs_table(packs: Sequence[Compiled]) -> Table:
    """What `skiff kernels list` prints."""
    table = Table("pack", "GPU", "model", "vLLM", "made", "files", "MiB")
    for pack in packs:
        facts = pack.manifest.facts
        size = sum(path.stat().st_size for path in pack.path.rglob("*") if path.is_file())
        table.add_row(
            pack.path.name,
            facts.device or " ".join(pack.manifest.capabilities),
            facts.model,
            facts.versions.get("vllm", ""),
            time.strftime("%Y-%m-%d %H:%M", time.localtime(pack.manifest.made)),
            str(len(pack.manifest.files)),
            f"{size / (1 << 20):.1f}",
        )
    return table


def explain(one: Compiled, other: Compiled) -> list[Difference]:
    """The key factors in which two packs differ: why a start that finds one misses the other."""
    return differences(one.manifest.facts, other.manifest.facts)


def verify(pack: Compiled) -> list[str]:
    """What is wrong with the files of a pack or a layer; empty when every digest is right."""
    if (wrong := pack.damage()) or not pack.manifest.archive:
        return wrong
    with TemporaryDirectory(prefix="skiff-") as unpacked:
        place(pack.tree, Path(unpacked))
        return damage(Path(unpacked), pack.manifest.files)


def prune(packs: Sequence[Compiled], *, older_than: float, dry_run: bool) -> list[Compiled]:
    """Remove the packs that were made more than `older_than` seconds ago; returns them."""
    end = time.time() - older_than
    old = [pack for pack in packs if pack.manifest.made < end]
    if not dry_run:
        for pack in old:
            (pack.path / MANIFEST).unlink()  # first: half a pack must not look whole
            shutil.rmtree(pack.path)
    return old
