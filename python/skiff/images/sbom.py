"""The bill of materials of an unpacked image: CycloneDX 1.6 as JSON, the same for the same tree.

Written as a plain dict: what is told of a package is a handful of fields, and a library's
model of the whole format would be the larger part. A package is identified by its package URL.
Not covered: which package needs which, licences of Debian packages, the C libraries within wheels.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from skiff.images.installed import (
    DebianPackage,
    Distribution,
    Interpreter,
    debian_packages,
    distributions,
    interpreters,
)

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9._-]+)==(?P<version>[^ ;\\]+)(?P<rest>.*)$")
_HASH = re.compile(r"--hash=sha256:([0-9a-f]{64})")


def make_sbom(tree: Path, *, name: str, version: str, epoch: int, lock: str = "") -> bytes:
    """The SBOM of the image `name` in `version` whose tree is `tree`.

    `epoch` is its time in seconds since 1970; `lock` is a list of pins with hashes, as pip reads
    it. A distribution gets its hash when the lock allows one file only: which one of several was
    installed can't be told afterwards.
    """
    hashes = _locked(lock)
    components = {
        component["bom-ref"]: component
        for component in [
            *(_interpreter(one) for one in interpreters(tree)),
            *(_debian(package, _release(tree)) for package in debian_packages(tree)),
            *(_python(one, hashes) for one in distributions(tree)),
        ]
    }
    document: dict[str, Any] = {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {
            "timestamp": datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "name": "skiff"}]},
            "component": {
                "type": "container",
                "bom-ref": f"{name}@{version}",
                "name": name,
                "version": version,
            },
        },
        "components": [components[reference] for reference in sorted(components)],
    }
    digest = hashlib.sha256(json.dumps(document, sort_keys=True).encode()).digest()
    document["serialNumber"] = uuid.UUID(bytes=digest[:16], version=5).urn
    return json.dumps(document, indent=1, sort_keys=True).encode() + b"\n"


def _interpreter(found: Interpreter) -> dict[str, Any]:
    url = f"pkg:generic/python@{quote(found.version, safe='')}"
    return _component("application", "python", found.version, url)


def _debian(package: DebianPackage, release: Mapping[str, str]) -> dict[str, Any]:
    system = release.get("ID", "debian")
    url = f"pkg:deb/{system}/{quote(package.name, safe='')}@{quote(package.version, safe='')}"
    url += f"?arch={package.architecture}"
    if "VERSION_ID" in release:
        url += f"&distro={system}-{release['VERSION_ID']}"
    return _component("library", package.name, package.version, url)


def _python(found: Distribution, hashes: Mapping[tuple[str, str], list[str]]) -> dict[str, Any]:
    url = f"pkg:pypi/{found.key}@{quote(found.version, safe='')}"
    component = _component("library", found.name, found.version, url)
    if found.license:
        told = {"expression": found.license} if found.spdx else {"license": {"name": found.license}}
        component["licenses"] = [told]
    allowed = hashes.get((found.key, found.version), [])
    if len(allowed) == 1:
        component["hashes"] = [{"alg": "SHA-256", "content": allowed[0]}]
    return component


def _component(kind: str, name: str, version: str, url: str) -> dict[str, Any]:
    return {"type": kind, "bom-ref": url, "name": name, "version": version, "purl": url}


def _release(tree: Path) -> dict[str, str]:
    """The fields of /etc/os-release, which may be a link that is absolute in the image."""
    for path in (tree / "usr" / "lib" / "os-release", tree / "etc" / "os-release"):
        if path.is_file():
            pairs = (line.partition("=") for line in path.read_text().splitlines())
            return {key: value.strip("\"'") for key, _, value in pairs}
    return {}


def _locked(lock: str) -> dict[tuple[str, str], list[str]]:
    """{(name as indexes compare it, version): hashes of the files that may be installed}"""
    found = {}
    for line in lock.replace("\\\n", " ").splitlines():
        if pin := _PIN.match(line):
            name = re.sub(r"[-_.]+", "-", pin["name"]).lower()
            found[name, pin["version"]] = _HASH.findall(pin["rest"])
    return found
