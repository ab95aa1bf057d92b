"""A Debian root file system, made by mmdebstrap: the ground of the sandbox image and of the SIFs.

Needs no registry, no root and no Docker. The tar is kept below $SKIFF_HOME, so that only the first
build needs the network. Not covered: Debian's security updates; raise `epoch` in a recipe to take
them.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skiff.errors import InfraError
from skiff.tasks.store import skiff_home

BUILD_SECONDS = 1800
_REACHING = re.compile(r'Acquire::(https?|Check-|ForceIPv|Max-ValidTime|Retries)\S* "[^"]+"')


@dataclass(frozen=True)
class Recipe:
    """What goes into a root file system. `digest` changes whenever the recipe does."""

    suite: str
    variant: str
    epoch: int
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    digest: str


def read_recipe(path: Path, *, section: str | None = None, salt: str = "") -> Recipe:
    """Read a recipe file, or that section of it. `salt` is what else the digest stands for. Raises
    InfraError when it is missing or incomplete."""
    try:
        fields: dict[str, Any] = tomllib.loads(path.read_text())
        if section is not None:
            fields = fields[section]
        return Recipe(
            suite=fields["suite"],
            variant=fields["variant"],
            epoch=fields["epoch"],
            include=tuple(fields["include"]),
            exclude=tuple(fields["exclude"]),
            digest=hashlib.sha256((repr(sorted(fields.items())) + salt).encode()).hexdigest()[:16],
        )
    except (OSError, tomllib.TOMLDecodeError, KeyError) as error:
        raise InfraError(
            f"no usable recipe: {error!r}",
            where=str(path),
            remedy="run Skiff from a complete clone",
        ) from error


def rootfs(recipe: Recipe, name: str) -> Path:
    """The tar of the root file system `name` below $SKIFF_HOME, built when absent."""
    tar = skiff_home() / "images" / f"{name}-{recipe.digest}.tar"
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
        *([f"--include={','.join(recipe.include)}"] if recipe.include else []),
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
            f"{program} is not installed, and images are built with it",
            where="images",
            remedy=f"install the package {package}, or copy the folder {target.parent} from a "
            "machine that has built it",
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


def host_acquire() -> str:
    """How this host's apt reaches its mirrors (proxies, time-outs), as lines of apt.conf."""
    if shutil.which("apt-config") is None:
        return ""
    done = subprocess.run(
        ["apt-config", "dump", "--format", '%F "%v";%n', "Acquire"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    return "".join(line for line in done.stdout.splitlines(keepends=True) if _REACHING.match(line))
