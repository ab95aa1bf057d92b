"""Is this SIF what it says? Signature, version, lock, and its own smoke test."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from skiff.apptainer import check_sif
from skiff.errors import ImageError
from skiff.images.build import LOCK, read_manifest
from skiff.images.definitions import find_image, release_version
from skiff.images.runnable import check_file, runnable
from skiff.images.signature import verify as verify_signature
from skiff.sif import read_object

TEST_SECONDS = 900.0


def verify_image(sif: Path, *, key: Path | None = None) -> list[str]:
    """What was found right, one sentence each; `key` is the public one of the signature.

    Raises ImageError with the first thing that is wrong, ConfigError when there is no such file.
    """
    check_file(sif)
    found = []
    if key is not None:
        verify_signature(sif, key)
        found.append(f"signed by the key of {key}, and unchanged since")
    manifest = read_manifest(sif)
    image = find_image(manifest["name"])
    _same("version", manifest["version"], release_version(), sif)
    found.append(f"skiff-{image.name} {manifest['version']}, revision {manifest['revision']}")
    if image.lock_file is not None:
        inside = hashlib.sha256(read_object(sif, LOCK)).hexdigest()
        _same("lock", inside, manifest["lock_sha256"], sif)
        wanted = hashlib.sha256(image.lock_file.read_bytes()).hexdigest()
        _same("lock", inside, wanted, sif)
        found.append(f"made of locks/{image.lock}.txt, sha256 {inside[:16]}")
    isolated = ["--userns", "--contain", "--cleanenv", "--no-home"]
    check_sif(["test", *isolated, str(runnable(sif))], timeout=TEST_SECONDS)
    found.append("its own test passes")
    return found


def inspect_image(sif: Path) -> str:
    """The manifest of an image as JSON."""
    manifest: dict[str, Any] = read_manifest(sif)
    return json.dumps(manifest, indent=1, sort_keys=True)


def _same(what: str, found: str, wanted: str, sif: Path) -> None:
    if found != wanted:
        raise ImageError(
            f"its {what} is {found}, that of this clone {wanted}",
            where=str(sif),
            remedy="check out the release of the image, or build it again: make build-sif",
        )
