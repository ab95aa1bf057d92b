"""The sandbox base image: Debian with bash, git and python3, made by mmdebstrap.

Needs no registry, no root and no Docker: one tar of a root file system, imported into podman's
store and kept below $SKIFF_HOME, so that only the first build needs the network. The image carries
a digest of its recipe as a label and is made again when the recipe changes.
Not covered: Debian security updates; raise `epoch` in the recipe to take them.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skiff.errors import InfraError
from skiff.podman import import_rootfs, run_podman
from skiff.tasks.shell import IMAGE
from skiff.tasks.store import skiff_home

RECIPE = Path(__file__).parents[3] / "containers" / "sandbox" / "recipe.toml"
LABEL = "skiff.recipe"
PYTHON = "3.11"  # what the recipe's suite calls python3
BUILD_SECONDS = 1800
_CHANGES = (
    "ENV LANG=C.UTF-8",
    "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    'CMD ["/bin/bash"]',
)


@dataclass(frozen=True)
class Recipe:
    """What goes into the image. `digest` changes whenever the recipe or this module's part does."""

    suite: str
    variant: str
    epoch: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    digest: str


def read_recipe(path: Path = RECIPE) -> Recipe:
    """Read a recipe file. Raises InfraError when it is missing or incomplete."""
    try:
        raw = path.read_bytes()
        fields: dict[str, Any] = tomllib.loads(raw.decode())
        return Recipe(
            suite=fields["suite"],
            variant=fields["variant"],
            epoch=fields["epoch"],
            include=tuple(fields["include"]),
            exclude=tuple(fields["exclude"]),
            digest=hashlib.sha256(raw + repr(_CHANGES).encode()).hexdigest()[:16],
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InfraError(
            f"no usable recipe: {error!r}",
            where=str(path),
            remedy="run Skiff from a complete clone",
        ) from error


def ensure_sandbox_image(recipe: Recipe | None = None, *, name: str = IMAGE) -> bool:
    """Make the image unless the store holds it in the recipe's version. True when it was made.

    Takes about half a minute the first time. Raises InfraError with the failing program's words.
    """
    recipe = recipe or read_recipe()
    if image_label(name, LABEL) == recipe.digest:
        return False
    tar = rootfs(recipe)
    import_rootfs(tar, name, changes=[*_CHANGES, f"LABEL {LABEL}={recipe.digest}"])
    return True


def rootfs(recipe: Recipe) -> Path:
    """The tar of the root file system below $SKIFF_HOME, built when absent."""
    tar = skiff_home() / "images" / f"sandbox-{recipe.digest}.tar"
    if tar.exists():
        return tar
    tar.parent.mkdir(parents=True, exist_ok=True)
    partial = tar.with_suffix(f".{os.getpid()}.tar")
    try:
        _bootstrap(recipe, partial)
        partial.replace(tar)
    finally:
        partial.unlink(missing_ok=True)
    return tar


def image_label(name: str, label: str) -> str | None:
    """The label of an image in podman's store; None when either is absent."""
    inspect = ["image", "inspect", "--format", f'{{{{index .Labels "{label}"}}}}', name]
    done = run_podman(inspect, timeout=60)
    return done.stdout.decode().strip() or None if done.returncode == 0 else None


def _bootstrap(recipe: Recipe, target: Path) -> None:
    root = os.getuid() == 0
    _require("mmdebstrap", "mmdebstrap", target)
    if not root:
        _require("newuidmap", "uidmap", target)
    command = [
        "mmdebstrap",
        "--quiet",
        f"--mode={'root' if root else 'unshare'}",
        f"--variant={recipe.variant}",
        f"--include={','.join(recipe.include)}",
        *(f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude),
        recipe.suite,
        str(target),
        *host_mirrors(recipe.suite),
    ]
    try:
        done = subprocess.run(
            command,
            env=os.environ | {"SOURCE_DATE_EPOCH": str(recipe.epoch)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=BUILD_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no end after {BUILD_SECONDS} s", where="mmdebstrap") from error
    if done.returncode != 0:
        words = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise InfraError(
            f"exit {done.returncode}: {words}",
            where="mmdebstrap",
            remedy="the first build needs a reachable Debian mirror and, for an ordinary user, "
            "lines of that user in /etc/subuid and /etc/subgid",
        )


def _require(program: str, package: str, target: Path) -> None:
    if shutil.which(program) is None:
        raise InfraError(
            f"{program} is not installed, and the sandbox image is built with it",
            where="images",
            remedy=f"install the package {package}, or copy the folder {target.parent} from a "
            "machine that has built the image",
        )


def host_mirrors(suite: str) -> list[str]:
    """The Debian archives that this host's apt uses for `suite`, as lines of sources.list.

    Empty (mmdebstrap then takes its default) when the host is no Debian or has another suite.
    """
    if shutil.which("apt-get") is None:
        return []
    fields = "$(REPO_URI) $(RELEASE) $(COMPONENT)"
    done = subprocess.run(
        ["apt-get", "indextargets", "--format", fields, "Created-By: Packages"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    wanted = {suite, f"{suite}-updates", f"{suite}-security"}
    rows = dict.fromkeys(tuple(line.split()) for line in done.stdout.splitlines())
    found = [row for row in rows if len(row) == 3 and row[1] in wanted and row[2] == "main"]
    if suite not in {release for _, release, _ in found}:
        return []
    return [f"deb {uri} {release} {component}" for uri, release, component in found]
