"""What is installed in an unpacked image tree: Debian packages, Python distributions, interpreters.

Read from the packages' own records; nothing of the tree is run.
Not covered: packages of other distributions, and what a Python distribution carries inside itself.
"""

from __future__ import annotations

import csv
import os
import re
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from pathlib import Path

_INTERPRETER = re.compile(r"python3\.\d+")


@dataclass(frozen=True)
class DebianPackage:
    """A package that dpkg has installed. `files` are absolute in the image, links resolved."""

    name: str
    version: str
    architecture: str
    files: tuple[str, ...]


@dataclass(frozen=True)
class Distribution:
    """A Python distribution.

    license   an SPDX expression (`spdx`), or what its makers wrote instead; may be empty
    files     absolute in the image, with the compiled files that are made of them
    """

    name: str
    version: str
    license: str
    spdx: bool
    files: tuple[str, ...]

    @property
    def key(self) -> str:
        """The name as package indexes compare it."""
        return re.sub(r"[-_.]+", "-", self.name).lower()


@dataclass(frozen=True)
class Interpreter:
    """A Python that no package of dpkg brought. `version` lacks its last part when the tree has no
    header files; `prefix` is absolute in the image."""

    version: str
    prefix: str


def debian_packages(tree: Path) -> list[DebianPackage]:
    """The packages that dpkg calls installed, by name; none when the tree is of no Debian."""
    status = tree / "var" / "lib" / "dpkg" / "status"
    if not status.is_file():
        return []
    found = []
    for paragraph in status.read_text(encoding="utf-8", errors="replace").split("\n\n"):
        fields = HeaderParser().parsestr(paragraph)
        if fields.get("Status", "").split()[-1:] != ["installed"]:
            continue
        name, architecture = fields["Package"], fields["Architecture"]
        files = _listed_by_dpkg(tree, name, architecture)
        found.append(DebianPackage(name, fields["Version"], architecture, files))
    return sorted(found, key=lambda package: (package.name, package.architecture))


def distributions(tree: Path) -> list[Distribution]:
    """The distributions in all folders that interpreters look for packages in, by name."""
    found = []
    for folder, folders, _ in os.walk(tree):
        if Path(folder).name in ("site-packages", "dist-packages"):
            infos = (Path(folder, name) for name in folders if name.endswith(".dist-info"))
            found += [_distribution(info, tree) for info in infos if (info / "METADATA").is_file()]
    return sorted(found, key=lambda one: (one.key, one.version, one.files))


def interpreters(tree: Path) -> list[Interpreter]:
    """The interpreters whose standard library lies at PREFIX/lib/python3.N, by prefix."""
    owned = {file for package in debian_packages(tree) for file in package.files}
    found = []
    for folder, folders, files in os.walk(tree):
        place = Path(folder)
        if _INTERPRETER.fullmatch(place.name) and place.parent.name == "lib" and "os.py" in files:
            folders.clear()
            if _inside(place / "os.py", tree) not in owned:
                prefix = place.parent.parent
                found.append(Interpreter(_version(prefix, place.name), _inside(prefix, tree)))
    return sorted(found, key=lambda one: one.prefix)


def _version(prefix: Path, name: str) -> str:
    header = prefix / "include" / name / "patchlevel.h"
    if header.is_file():
        found = re.search(r'#define\s+PY_VERSION\s+"([^"]+)"', header.read_text())
        if found:
            return found[1]
    return name.removeprefix("python")


def _listed_by_dpkg(tree: Path, name: str, architecture: str) -> tuple[str, ...]:
    info = tree / "var" / "lib" / "dpkg" / "info"
    for path in (info / f"{name}.list", info / f"{name}:{architecture}.list"):
        if path.is_file():
            break
    else:
        return ()
    # Packages list /lib/x where the image has a link /lib -> usr/lib.
    tops: dict[str, str] = {}
    files = []
    for line in path.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        top, _, rest = line.removeprefix("/").partition("/")
        if top not in tops:
            link = tree / top
            target = str(link.readlink()).removeprefix("/") if link.is_symlink() else top
            tops[top] = target
        files.append(f"/{tops[top]}/{rest}")
    return tuple(files)


def _distribution(info: Path, tree: Path) -> Distribution:
    text = (info / "METADATA").read_text(encoding="utf-8", errors="replace")
    fields = HeaderParser().parsestr(text)
    expression = fields.get("License-Expression", "").strip()
    return Distribution(
        name=fields["Name"],
        version=fields["Version"],
        license=expression or _license(fields),
        spdx=bool(expression),
        files=_recorded(info, tree),
    )


def _license(fields: Message) -> str:
    """The licence in one line, of the fields older than expressions; some hold whole texts."""
    written = fields.get("License", "").strip()
    if written and written != "UNKNOWN" and "\n" not in written and len(written) <= 100:
        return written
    kinds = [line for line in fields.get_all("Classifier", []) if line.startswith("License ::")]
    names = (line.rpartition("::")[2].strip() for line in kinds)
    return ", ".join(sorted({name for name in names if name != "OSI Approved"}))


def _recorded(info: Path, tree: Path) -> tuple[str, ...]:
    record = info / "RECORD"
    if not record.is_file():
        return ()
    place = _inside(info.parent, tree)
    files = set()
    with record.open(encoding="utf-8", newline="") as file:
        for row in csv.reader(file):
            path = os.path.normpath(f"{place}/{row[0]}")
            files.add(path)
            folder, name = os.path.split(path)
            if name.endswith(".py"):  # uv lists no compiled files, pip does
                caches = Path(tree, folder.removeprefix("/"), "__pycache__")
                files |= {_inside(cached, tree) for cached in caches.glob(f"{name[:-3]}.*.pyc")}
    return tuple(sorted(files))


def _inside(path: Path, tree: Path) -> str:
    """A path of the tree as the image has it."""
    return "/" + str(path.relative_to(tree)).removeprefix(".")
