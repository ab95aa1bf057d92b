"""Locks: what they pin, and where they disagree with pyproject.toml or with an image.

Not covered: packages in a lock that nothing asks for any more (`make lock` drops them).
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

# Lock -> the extras of pyproject.toml that it resolves.
LOCKS = {
    "cpu": ("cpu", "runtime", "dev"),
    "cuda": ("cuda", "runtime", "images"),
    "runtime": ("runtime", "images"),
    "trainer-cpu": ("cpu", "images"),
}
_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")


def direct_requirements(pyproject: Path, extras: Iterable[str]) -> list[Requirement]:
    """The project's own requirements with `extras`; `skiff[x]` inside an extra is followed."""
    project = tomllib.loads(pyproject.read_text())["project"]
    found = [Requirement(text) for text in project["dependencies"]]
    pending = list(extras)
    while pending:
        for text in project["optional-dependencies"][pending.pop()]:
            requirement = Requirement(text)
            if requirement.name == project["name"]:
                pending.extend(requirement.extras)
            else:
                found.append(requirement)
    return found


def read_pins(lock: Path) -> tuple[dict[str, str], list[str]]:
    """({canonical name: version}, [names without a hash]) of one lock file."""
    pins: dict[str, str] = {}
    unhashed: list[str] = []
    for entry in lock.read_text().replace("\\\n", " ").splitlines():
        if match := _PIN.match(entry):
            pins[canonicalize_name(match["name"])] = match["version"]
            if "--hash=sha256:" not in entry:
                unhashed.append(match["name"])
    return pins, unhashed


def differences(root: Path, names: Iterable[str] = tuple(LOCKS)) -> list[str]:
    """One sentence for each disagreement of `root`/locks with `root`/pyproject.toml."""
    found = []
    for name in names:
        pins, unhashed = read_pins(root / "locks" / f"{name}.txt")
        found += [f"locks/{name}.txt: {package} has no hash" for package in unhashed]
        for requirement in direct_requirements(root / "pyproject.toml", LOCKS[name]):
            version = pins.get(canonicalize_name(requirement.name))
            if version is None:
                found.append(f"locks/{name}.txt: {requirement.name} is missing")
            elif not requirement.specifier.contains(version, prereleases=True):
                found.append(f"locks/{name}.txt: {requirement} is asked for, {version} is locked")
    return found


def read_debian_lock(lock: Path) -> dict[str, str]:
    """{name: version} of a list of name=version lines; # begins a comment."""
    lines = (line.partition("#")[0].strip() for line in lock.read_text().splitlines())
    return dict(line.split("=", 1) for line in lines if line)


def debian_differences(installed: dict[str, str], locked: dict[str, str]) -> list[str]:
    """One sentence for each installed package whose version is not the locked one."""
    return [
        f"{name}: {version} is installed, {locked.get(name, 'no version')} is locked"
        for name, version in sorted(installed.items())
        if locked.get(name) != version
    ]
