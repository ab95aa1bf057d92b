"""Does pyproject.toml agree with locks/? Prints the names that differ and exits 1 when not.

Checked: every direct requirement is pinned in the lock at a version it allows, and every pin has a
hash. Not covered: packages in the lock that nothing asks for any more (`make lock` drops them).
"""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

LOCKS = {"cpu": ("cpu", "runtime", "dev"), "cuda": ("cuda", "runtime")}
PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)")


def direct_requirements(pyproject: Path, extras: tuple[str, ...]) -> list[Requirement]:
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
        if match := PIN.match(entry):
            pins[canonicalize_name(match["name"])] = match["version"]
            if "--hash=sha256:" not in entry:
                unhashed.append(match["name"])
    return pins, unhashed


def differences(root: Path) -> list[str]:
    """One sentence for each disagreement between `root`/pyproject.toml and `root`/locks."""
    found = []
    for name, extras in LOCKS.items():
        pins, unhashed = read_pins(root / "locks" / f"{name}.txt")
        found += [f"locks/{name}.txt: {package} has no hash" for package in unhashed]
        for requirement in direct_requirements(root / "pyproject.toml", extras):
            version = pins.get(canonicalize_name(requirement.name))
            if version is None:
                found.append(f"locks/{name}.txt: {requirement.name} is missing")
            elif not requirement.specifier.contains(version, prereleases=True):
                found.append(f"locks/{name}.txt: {requirement} is asked for, {version} is locked")
    return found


def main() -> int:
    found = differences(Path(__file__).resolve().parent.parent)
    for line in found:
        print(line, file=sys.stderr)
    if found:
        print("  -> run: make lock", file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
