"""Images in Skiff's own podman store.

Not covered: complete layers of an image whose pull was given up stay in the store until podman
prunes them; the next pull of that image takes them up.
"""

from __future__ import annotations

import json
import re
import subprocess
from collections import Counter
from pathlib import Path
from typing import Any

from skiff.errors import ImageError, InfraError
from skiff.image_use import forget, full_name, last_used, mark_used
from skiff.images.archive import Archive, Kind
from skiff.images.owner import scratch
from skiff.images.sandbox import ensure_sandbox_image
from skiff.images.store import LOCAL, Check, StoredImage, find, folder_bytes, not_pullable
from skiff.podman import check_podman, import_rootfs, podman_root, run_podman, watch_podman
from skiff.tasks.shell import IMAGE

# What registries and podman say when no second try will help.
_PERMANENT = re.compile(
    r"(manifest|name|blob) unknown|not found|unauthorized|denied|forbidden|invalid reference"
    r"|does not match provided manifest digest|no image found in (image index|manifest list)"
    r"|x509|tls: first record|unsupported",
    re.IGNORECASE,
)
_GONE = re.compile("image not known|no such (container|image)|layer not known", re.IGNORECASE)
LIST_ATTEMPTS = 10
_IN_USE = ("image is in use", "image used by")


class PodmanStore:
    """A `store.Store`. Without `verify_tls` registries may speak plain HTTP (a mirror on this
    host)."""

    def __init__(self, *, verify_tls: bool = True) -> None:
        self._verify_tls = verify_tls

    @property
    def folder(self) -> Path:
        return podman_root()

    def images(self) -> list[StoredImage]:
        # One row per name. An image without digest and names is just being stored.
        found = _json(["images", "--format", "json"])
        rows = {row["Id"]: row for row in found if row.get("Digest")}
        containers = _json(["ps", "--all", "--format", "json"])
        counts = Counter(str(container["ImageID"]) for container in containers)
        return [self._image(row, counts[key]) for key, row in rows.items()]

    def used_bytes(self) -> int:
        layers = podman_root() / "storage" / "overlay-layers" / "layers.json"
        total = folder_bytes(podman_root() / "tmp")
        if layers.exists():
            total += sum(layer.get("diff-size", 0) for layer in json.loads(layers.read_text()))
        return total

    def pull(self, name: str, check: Check) -> None:
        full = full_name(name)
        if full == IMAGE:
            ensure_sandbox_image()
            return
        if full.startswith(LOCAL):
            raise not_pullable(name)
        command = ["pull", "--quiet", f"--tls-verify={str(self._verify_tls).lower()}", full]
        with scratch(podman_root() / "tmp") as folder:
            done = watch_podman(command, check, scratch=folder)
        if done.returncode != 0:
            words = _last_line(done)
            kind = ImageError if _PERMANENT.search(words) else InfraError
            raise kind(words, where=f"podman pull {full}")
        mark_used(self.folder, name)

    def add(self, archive: Archive, name: str) -> None:
        if archive.kind is Kind.SIF:
            raise ImageError(
                "podman cannot run a SIF file",
                where=str(archive.path),
                remedy="import it into a SIF cache (--sif FOLDER), or import what it was made from",
            )
        full = full_name(name)
        if archive.kind is Kind.ROOTFS_TAR:
            import_rootfs(archive.path, full)
        elif archive.kind is Kind.ROOTFS:
            _import_folder(archive.path, full)
        else:
            self._load(archive, full)
        mark_used(self.folder, name)

    def save(self, name: str, target: Path) -> bool:
        """Write an image as a docker-archive; False when the store has none of that name."""
        image = find(self, name)
        if image is None:
            return False
        command = ["save", "--quiet", "--format=docker-archive", f"--output={target}", image.id]
        check_podman(command, timeout=3600)
        return True

    def remove(self, image: StoredImage) -> bool:
        done = run_podman(["image", "rm", *(image.names or (image.id,))])
        words = _last_line(done)
        if done.returncode != 0:
            if any(known in words for known in _IN_USE):
                return False
            raise InfraError(words, where=f"podman image rm {image.names or image.id}")
        for name in (*image.names, *image.pinned):
            forget(self.folder, name)
        return True

    def _image(self, row: dict[str, Any], sandboxes: int) -> StoredImage:
        names = tuple(row.get("Names") or ())
        pinned = tuple(row.get("RepoDigests") or ())
        uses = (last_used(self.folder, name) for name in (*names, *pinned))
        created = float(row["Created"])
        return StoredImage(
            id=row["Id"],
            names=names,
            pinned=pinned,
            digest=row["Digest"],
            size_bytes=row["Size"],
            created=created,
            used=max(uses, default=0) or created,
            sandboxes=sandboxes,
        )

    def _load(self, archive: Archive, name: str) -> None:
        """Load an archive under `name` alone: the names in it may belong to others here."""
        before = {known: image.id for image in self.images() for known in image.names}
        words = check_podman(["pull", "--quiet", archive.source], timeout=3600)
        loaded = words.decode().split()[-1]
        check_podman(["tag", loaded, name])
        for image in self.images():
            for brought in image.names if image.id == loaded else ():
                if brought == name or before.get(brought) == loaded:
                    continue
                if brought in before:
                    check_podman(["tag", before[brought], brought])
                else:
                    check_podman(["untag", loaded, brought])


def _import_folder(folder: Path, name: str) -> None:
    with scratch(podman_root() / "tmp") as work:
        tar = work / "root.tar"
        command = ["tar", "--create", "--numeric-owner", f"--file={tar}", f"--directory={folder}"]
        done = subprocess.run([*command, "."], capture_output=True, check=False)
        if done.returncode != 0:
            raise InfraError(_last_line(done), where=f"tar {folder}")
        import_rootfs(tar, name)


def _json(arguments: list[str]) -> list[dict[str, Any]]:
    """What podman lists; asked again when an image or a container went while it looked."""
    for _ in range(LIST_ATTEMPTS):
        done = run_podman(arguments, timeout=120)
        if done.returncode == 0:
            found: list[dict[str, Any]] = json.loads(done.stdout)
            return found
        if not _GONE.search(_last_line(done)):
            break
    raise InfraError(_last_line(done), where=f"podman {arguments[0]}")


def _last_line(done: subprocess.CompletedProcess[bytes]) -> str:
    """What a failed program said last; before it come warnings and earlier tries."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    return lines[-1].removeprefix("Error: ") if lines else f"exit {done.returncode}"
