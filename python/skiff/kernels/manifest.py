"""The manifest of compiled code: what it was made by and for, and the digest of each file.

`check` compares a manifest with the facts of a start and names each field that differs, before
anything is started. Not covered: what vLLM hashes of its sources (the digest of the image's locks
stands for it: an image built again from them has the same files), and the driver (it is in no key,
and only noted).
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from skiff.errors import InfraError
from skiff.files import write_atomic
from skiff.kernels.variables import ROOT, key_variables

MANIFEST = "manifest.json"
TREE = "tree"  # of an image's architecture layer
ARCHIVE = "tree.squashfs"  # of a pack
PACKAGES = ("torch", "triton", "vllm", "flashinfer-python", "verl", "transformers")

Value = str | int | float | bool | None


class Facts(BaseModel):
    """Everything that decides whether compiled code is found again.

    versions      of the packages in `PACKAGES`, those that are installed
    platform      what Triton's key says of the host; `file` on PATH is part of it
    root          where the tree lies
    image         digest of the lock files that the image was made from
    device        the GPU's name as torch tells it (a MIG slice has its own), e.g. "NVIDIA H200"
    capability    of that GPU, e.g. "9.0"
    model         the path of the weights as the engine is given it
    engine        the engine's arguments: lengths, batch sizes, parallelism, dtype, compilation
    environment   the variables that are part of keys
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    versions: dict[str, str]
    platform: str
    root: str
    image: str = ""
    device: str = ""
    capability: str = ""
    model: str = ""
    engine: dict[str, Value] = {}
    environment: dict[str, str] = {}


class Manifest(BaseModel):
    """What a pack or an architecture layer says of itself.

    kind           "device": for one GPU name, model and engine; "architecture": for any engine
    facts          of the process that made it
    capabilities   what an architecture layer was made for, e.g. ("8.0", "9.0")
    driver         that was seen, or ""
    made           when, in seconds since 1970
    files          sha256 of each file of the tree
    archive        sha256 of a pack's squashfs file; "" where the tree is a folder
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["device", "architecture"]
    facts: Facts
    capabilities: tuple[str, ...] = ()
    driver: str = ""
    made: float
    files: dict[str, str]
    archive: str = ""


@dataclass(frozen=True)
class Difference:
    """A field whose value differs."""

    field: str
    theirs: object
    ours: object

    def __str__(self) -> str:
        return f"{self.field} is {self.theirs!r} there and {self.ours!r} here"


def host_platform() -> str:
    """What Triton's key says of the host. Its last word comes from file(1), if that is on PATH."""
    return ",".join([platform.machine(), platform.system(), *platform.architecture()])


def installed_versions() -> dict[str, str]:
    """Versions of the packages that make or load compiled code."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def here(
    environ: Mapping[str, str],
    *,
    root: Path = ROOT,
    image: str = "",
    device: str = "",
    capability: str = "",
    model: str = "",
    engine: Mapping[str, Value] | None = None,
) -> Facts:
    """The facts of this process; what only the caller can know is given."""
    return Facts(
        versions=installed_versions(),
        platform=host_platform(),
        root=str(root),
        image=image,
        device=device,
        capability=capability,
        model=model,
        engine=dict(engine or {}),
        environment=key_variables(environ),
    )


def differences(theirs: Facts, ours: Facts) -> list[Difference]:
    """The fields in which two sets of facts differ; tables are compared key by key."""
    found = []
    for field in Facts.model_fields:
        one, other = getattr(theirs, field), getattr(ours, field)
        if isinstance(one, dict):
            found += [
                Difference(f"{field}.{key}", one.get(key), other.get(key))
                for key in sorted({*one, *other})
                if one.get(key) != other.get(key)
            ]
        elif one != other:
            found.append(Difference(field, one, other))
    return found


def check(manifest: Manifest, ours: Facts) -> list[Difference]:
    """Why a start with the facts `ours` would not find what was compiled; empty when it would.

    An architecture layer has neither device nor engine in its keys.
    """
    found = differences(manifest.facts, ours)
    if manifest.kind == "device":
        return found
    fields = ("versions", "platform", "root", "environment.TRITON_DEFAULT_FP_FUSION")
    found = [one for one in found if one.field.startswith(fields)]
    if ours.capability not in manifest.capabilities:
        found.append(Difference("capability", ", ".join(manifest.capabilities), ours.capability))
    return found


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder`/manifest.json."""
    write_atomic(folder / MANIFEST, manifest.model_dump_json(indent=1) + "\n")


def read_manifest(folder: Path) -> Manifest:
    """Read `folder`/manifest.json. Raises InfraError when it is missing or malformed."""
    path = folder / MANIFEST
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InfraError(f"cannot be read: {error.strerror}", where=str(path)) from error
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "the file"
        raise InfraError(
            f"{field}: {first['msg']}", where=str(path), remedy="make the pack again"
        ) from error
