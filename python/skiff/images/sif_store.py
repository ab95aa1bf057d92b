"""A folder of SIF files that several nodes share: `<image>.sif`, and beside each a JSON file.

A SIF file is made in a folder of its own and renamed into place, so that it is whole whenever it
can be seen. Images come from Skiff's podman store when that holds them, else from their registry.
Not covered: ending a conversion half-way when the disk fills; the limit is checked before it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import BaseModel, ValidationError

from skiff.apptainer import build_sif
from skiff.errors import ImageError, InfraError
from skiff.files import write_atomic
from skiff.image_use import LEASE_SECONDS, forget, full_name, last_used, mark_used, sif_path
from skiff.images.archive import Archive, Kind, detect
from skiff.images.owner import scratch
from skiff.images.podman_store import PodmanStore
from skiff.images.rootfs import unpacked
from skiff.images.sandbox import sandbox_recipe, sandbox_rootfs
from skiff.images.store import LOCAL, Check, StoredImage, folder_bytes, not_pullable
from skiff.tasks.shell import IMAGE

Build = Callable[[str, Path], None]  # (source as `apptainer build` names it, the SIF to make)


class Sidecar(BaseModel):
    """What the JSON file beside a SIF file says. `digest` is the SIF file's; times in seconds since
    1970."""

    name: str
    digest: str
    source: str
    size_bytes: int
    created: float


class SifStore:
    """A `store.Store` in the folder `folder`, which is made when absent."""

    def __init__(self, folder: Path, *, build: Build = build_sif) -> None:
        self._folder = folder.absolute()
        self._build = build
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise InfraError(f"cannot be made: {error.strerror}", where=str(folder)) from error

    @property
    def folder(self) -> Path:
        return self._folder

    def images(self) -> list[StoredImage]:
        found = (self._image(path) for path in sorted(self._folder.glob("*.sif")))
        return [image for image in found if image is not None]

    def used_bytes(self) -> int:
        return sum(image.size_bytes for image in self.images()) + folder_bytes(self._scratch)

    def pull(self, name: str, check: Check) -> None:
        check()
        full = full_name(name)
        with scratch(self._scratch) as work:
            tar = work / "image.tar"
            if shutil.which("podman") is not None and PodmanStore().save(name, tar):
                self._make(f"docker-archive:{tar}", name, work, told=f"podman:{full}")
            elif full == IMAGE:
                self.add(detect(sandbox_rootfs(sandbox_recipe())), name)
            elif full.startswith(LOCAL):
                raise not_pullable(name)
            else:
                self._make(f"docker://{full}", name, work)

    def add(self, archive: Archive, name: str) -> None:
        with scratch(self._scratch) as work:
            if archive.kind is Kind.SIF:
                shutil.copyfile(archive.path, work / "copy.sif")
                self._publish(work / "copy.sif", name, str(archive.path))
            elif archive.kind in (Kind.ROOTFS, Kind.ROOTFS_TAR):
                with unpacked(archive, work) as root:
                    self._make(str(root), name, work, told=str(archive.path))
            else:
                self._make(archive.source, name, work)

    def remove(self, image: StoredImage) -> bool:
        if time.time() - last_used(self._folder, image.id) < LEASE_SECONDS:
            return False
        path = sif_path(self._folder, image.id)
        path.unlink(missing_ok=True)
        _sidecar(path).unlink(missing_ok=True)
        forget(self._folder, image.id)
        return True

    @property
    def _scratch(self) -> Path:
        return self._folder / "partial"

    def _make(self, source: str, name: str, work: Path, *, told: str = "") -> None:
        made = work / "made.sif"
        self._build(source, made)
        self._publish(made, name, told or source)

    def _publish(self, made: Path, name: str, source: str) -> None:
        """The JSON file first: a SIF file without one would be an image that nobody knows."""
        target = sif_path(self._folder, name)
        with made.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        sidecar = Sidecar(
            name=full_name(name),
            digest=f"sha256:{digest}",
            source=source,
            size_bytes=made.stat().st_size,
            created=time.time(),
        )
        made.chmod(0o644)
        write_atomic(_sidecar(target), sidecar.model_dump_json(indent=2) + "\n")
        made.replace(target)
        mark_used(self._folder, name)

    def _image(self, path: Path) -> StoredImage | None:
        """None when it was removed meanwhile, or put here by hand."""
        try:
            sidecar = Sidecar.model_validate_json(_sidecar(path).read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise ImageError(
                "is not what Skiff writes beside a SIF file",
                where=str(_sidecar(path)),
                remedy="remove it and the SIF file, and pull the image again",
            ) from error
        used = last_used(self._folder, sidecar.name)
        return StoredImage(
            id=sidecar.name,
            names=(sidecar.name,),
            pinned=(),
            digest=sidecar.digest,
            size_bytes=sidecar.size_bytes,
            created=sidecar.created,
            used=used or sidecar.created,
            sandboxes=None if time.time() - used < LEASE_SECONDS else 0,
        )


def _sidecar(sif: Path) -> Path:
    return sif.with_name(f"{sif.name}.json")
