"""The images of a release: their definitions, locks and bases, and what identifies a build.

Pure reading of the clone; nothing is built here.
"""

from __future__ import annotations

import hashlib
import subprocess
import tarfile
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from skiff.errors import ImageError

ROOT = Path(__file__).parents[3]
BASE_TOML = ROOT / "containers" / "base.toml"
DEBIAN_LOCK = ROOT / "locks" / "debian.txt"
# What of the clone an image carries in /opt/skiff: what its entry points read.
SOURCES = (
    "LICENSE",
    "README.md",
    "VERSION",
    "containers",
    "entrypoints",
    "locks",
    "profiles",
    "pyproject.toml",
    "python",
    "tools",
)


@dataclass(frozen=True)
class Image:
    """One SIF of a release. `lock` and `base` are None for the base itself."""

    name: str
    lock: str | None
    base: str | None

    @property
    def definition(self) -> Path:
        return ROOT / "containers" / f"{self.name}.def"

    @property
    def lock_file(self) -> Path | None:
        return ROOT / "locks" / f"{self.lock}.txt" if self.lock else None

    def file_name(self) -> str:
        """The versioned name: skiff-runtime-0.1.0.sif"""
        return f"skiff-{self.name}-{release_version()}.sif"


IMAGES = {
    image.name: image
    for image in (
        Image("base", lock=None, base=None),
        Image("runtime", lock="runtime", base="base"),
        Image("trainer-cpu", lock="trainer-cpu", base="base"),
        Image("trainer", lock="cuda", base="base"),
    )
}
DEFAULT = ("base", "runtime", "trainer-cpu")


def find_image(name: str) -> Image:
    """Raises ImageError naming those that exist."""
    if name not in IMAGES:
        raise ImageError(
            "there is no such image", where=name, remedy=f"choose from: {' '.join(IMAGES)}"
        )
    return IMAGES[name]


def with_bases(names: Iterable[str]) -> list[Image]:
    """The images and what they stand on, in an order in which they can be built."""
    found: dict[str, Image] = {}

    def add(name: str) -> None:
        image = find_image(name)
        if image.base is not None:
            add(image.base)
        found.setdefault(name, image)

    for name in names:
        add(name)
    return list(found.values())


def release_version() -> str:
    return (ROOT / "VERSION").read_text().strip()


def debian_names(image: str) -> list[str]:
    """The Debian packages that an image adds to its base."""
    names: list[str] = tomllib.loads(BASE_TOML.read_text())["packages"][image]
    return names


def revision() -> str:
    """The clone's commit, -dirty when files of an image differ from it; unknown without git."""
    try:
        commit = _git("rev-parse", "HEAD").strip()
        return f"{commit}-dirty" if _git("status", "--porcelain", "--", *SOURCES) else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def source_files() -> list[Path]:
    """The files of the clone that an image carries, relative to it, in order."""
    try:
        listed = _git(
            "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", *SOURCES
        )
        names = [name for name in listed.split("\0") if name]
    except (OSError, subprocess.CalledProcessError):  # a copy without git
        names = [
            str(path.relative_to(ROOT))
            for top in SOURCES
            for path in [ROOT / top, *(ROOT / top).rglob("*")]
            if "__pycache__" not in path.parts and ".egg-info" not in str(path)
        ]
    return sorted({Path(name) for name in names if (ROOT / name).is_file()})


def write_sources(tar: Path, *, epoch: int) -> None:
    """Write `source_files` into a tar file that depends on their content and modes alone."""
    with tarfile.open(tar, "w", format=tarfile.PAX_FORMAT) as file:
        for name in source_files():
            path = ROOT / name
            entry = tarfile.TarInfo(str(name))
            entry.size, entry.mtime = path.stat().st_size, epoch
            entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
            with path.open("rb") as content:
                file.addfile(entry, content)


def build_key(image: Image, arguments: Mapping[str, str], base_key: str) -> str:
    """Digest of all that a build of the image reads: equal keys make equal images."""
    digest = hashlib.sha256(repr((image.name, sorted(arguments.items()), base_key)).encode())
    files = [image.definition, BASE_TOML, DEBIAN_LOCK]
    if image.lock_file is not None:
        files += [image.lock_file, *(ROOT / name for name in source_files())]
    for path in files:
        digest.update(f"{path.relative_to(ROOT)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest() if path.exists() else b"absent")
    return digest.hexdigest()


def _git(*arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(ROOT), *arguments], capture_output=True, text=True, check=True
    )
    return done.stdout
