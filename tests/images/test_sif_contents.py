"""What is installed in an image, told from its unpacked tree: bill of materials and sizes."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import tarfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from skiff.images.installed import debian_packages, distributions, interpreters
from skiff.images.sandbox import sandbox_recipe, sandbox_rootfs
from skiff.images.sbom import make_sbom
from skiff.images.sizes import package_sizes, sizes_table

EPOCH = 1_735_689_600
TAKEN = ("httpx", "rich", "idna")  # real distributions of this environment, put into the tree
HASH = "a" * 64


@pytest.fixture(scope="module")
def debian(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The real Debian tree that sandboxes are made of, without its devices."""
    folder = tmp_path_factory.mktemp("debian")
    with tarfile.open(sandbox_rootfs(sandbox_recipe())) as archive:
        members = [one for one in archive if not one.isdev()]
        archive.extractall(folder, members, filter="tar")
    yield folder
    shutil.rmtree(folder)  # 200 MB that pytest would keep


@pytest.fixture(scope="module")
def tree(debian: Path) -> Path:
    """The same with an interpreter's folder and three Python distributions."""
    library = debian / "opt" / "python" / "lib" / "python3.12"
    site = library / "site-packages"
    site.mkdir(parents=True)
    (library / "os.py").write_text("# the standard library\n")
    headers = debian / "opt" / "python" / "include" / "python3.12"
    headers.mkdir(parents=True)
    (headers / "patchlevel.h").write_text('#define PY_VERSION      "3.12.7"\n')
    for name in TAKEN:
        found = importlib.metadata.distribution(name)
        for path in found.files or []:
            source = Path(str(found.locate_file(path)))
            if ".." not in path.parts and source.is_file():
                (site / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, site / path)
    (site / "idna" / "__pycache__").mkdir(exist_ok=True)
    (site / "idna" / "__pycache__" / "core.cpython-312.pyc").write_bytes(bytes(1000))
    return debian


@pytest.fixture(scope="module")
def bill(tree: Path) -> dict[str, Any]:
    version = importlib.metadata.version("rich")
    lock = (
        f"rich=={version} \\\n    --hash=sha256:{HASH}\n"
        f"idna=={importlib.metadata.version('idna')} --hash=sha256:{HASH}"
        f" --hash=sha256:{'b' * 64}\n"
    )
    made = make_sbom(tree, name="skiff-small", version="1.2.3", epoch=EPOCH, lock=lock)
    again = make_sbom(tree, name="skiff-small", version="1.2.3", epoch=EPOCH, lock=lock)
    assert made == again
    document: dict[str, Any] = json.loads(made)
    return document


def component(bill: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (one for one in bill["components"] if one["name"] == name)
    return dict(found)


def test_the_debian_packages_are_those_that_dpkg_names(debian: Path) -> None:
    form = "${db:Status-Status} ${Package} ${Version} ${Architecture}\n"
    command = ["dpkg-query", f"--admindir={debian}/var/lib/dpkg", "--show", "--showformat", form]
    shown = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    expected = {tuple(line.split()[1:]) for line in shown.splitlines() if line.startswith("inst")}
    found = {(one.name, one.version, one.architecture) for one in debian_packages(debian)}
    assert found == expected
    assert len(found) > 50


def test_the_distributions_are_those_of_their_environment(tree: Path) -> None:
    found = {one.key: one for one in distributions(tree)}
    assert set(TAKEN) <= found.keys()
    for name in TAKEN:
        assert found[name].version == importlib.metadata.version(name)
        listed = importlib.metadata.files(name) or []
        expected = {f"/opt/python/lib/python3.12/site-packages/{path}" for path in listed}
        assert {path for path in expected if "/.." not in path} <= set(found[name].files)


def test_interpreters_are_those_that_no_package_brought(tree: Path) -> None:
    (found,) = interpreters(tree)  # Debian's own python3.11 is one of dpkg's packages
    assert (found.version, found.prefix) == ("3.12.7", "/opt/python")
    (tree / "opt" / "python" / "include").rename(tree / "opt" / "include")
    try:
        assert interpreters(tree)[0].version == "3.12"
    finally:
        (tree / "opt" / "include").rename(tree / "opt" / "python" / "include")


def test_the_bill_names_all_of_it(bill: dict[str, Any], tree: Path) -> None:
    assert (bill["bomFormat"], bill["specVersion"], bill["version"]) == ("CycloneDX", "1.6", 1)
    assert bill["metadata"]["timestamp"] == "2025-01-01T00:00:00Z"
    assert bill["metadata"]["component"]["version"] == "1.2.3"
    assert uuid.UUID(bill["serialNumber"]).urn == bill["serialNumber"]
    names = [one["name"] for one in bill["components"]]
    assert len(names) == len(debian_packages(tree)) + len(distributions(tree)) + 1
    references = [one["bom-ref"] for one in bill["components"]]
    assert references == sorted(set(references))
    for one in bill["components"]:
        assert re.fullmatch(r"pkg:(deb/debian|pypi|generic)/[^@ ]+@[^@ ]+", one["purl"]), one
        assert {"type", "name", "version"} <= one.keys()
    assert component(bill, "python")["purl"] == "pkg:generic/python@3.12.7"
    assert re.fullmatch(
        r"pkg:deb/debian/libc6@2\.36-9%2Bdeb12u\d+\?arch=amd64&distro=debian-12",
        component(bill, "libc6")["purl"],
    )


def test_licences_and_hashes_as_far_as_they_are_known(bill: dict[str, Any]) -> None:
    assert component(bill, "idna")["licenses"] == [{"expression": "BSD-3-Clause"}]
    assert component(bill, "rich")["licenses"] == [{"license": {"name": "MIT"}}]
    assert component(bill, "rich")["hashes"] == [{"alg": "SHA-256", "content": HASH}]
    assert "hashes" not in component(bill, "idna")  # the lock allows two files
    assert "hashes" not in component(bill, "httpx")


def test_sizes_add_up_to_the_tree(tree: Path) -> None:
    found = package_sizes(tree)
    shown = subprocess.run(
        ["find", tree, "-type", "f", "-printf", "%D:%i %s\n"], capture_output=True, check=True
    )
    files = {tuple(line.split()) for line in shown.stdout.splitlines()}
    assert sum(share.bytes for share in found) == sum(int(size) for _, size in files)
    assert sum(share.files for share in found) == len(files)
    assert [share.bytes for share in found] == sorted((one.bytes for one in found), reverse=True)


def test_sizes_by_package(tree: Path) -> None:
    found = {(share.kind, share.name): share for share in package_sizes(tree)}
    site = tree / "opt" / "python" / "lib" / "python3.12" / "site-packages"
    folders = (site / "idna", *site.glob("idna-*.dist-info"))
    files = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert found["python", "idna"].bytes == sum(path.stat().st_size for path in files)
    # Debian lists /lib/x86_64-linux-gnu/libc.so.6, which lies below /usr.
    libc = (tree / "usr" / "lib" / "x86_64-linux-gnu" / "libc.so.6").stat().st_size
    assert found["debian", "libc6"].bytes > libc
    assert found["python", "(interpreter)"].files == 2
    listed = sum(share.bytes for (kind, _), share in found.items() if kind == "debian")
    assert listed > 0.9 * sum(share.bytes for share in found.values() if share.kind != "python")


def test_a_file_with_two_names_counts_once(tmp_path: Path) -> None:
    (tmp_path / "srv").mkdir()
    (tmp_path / "srv" / "one").write_bytes(bytes(1000))
    os.link(tmp_path / "srv" / "one", tmp_path / "srv" / "two")
    (share,) = package_sizes(tmp_path)
    assert (share.kind, share.name, share.bytes, share.files) == ("folder", "/srv", 1000, 1)


def test_the_table_of_sizes(tree: Path) -> None:
    found = package_sizes(tree)
    console = Console(width=100)
    with console.capture() as captured:
        console.print(sizes_table(found, title="small", top=3))
    lines = [line.split() for line in captured.get().splitlines() if line.strip()]
    assert [line[0] for line in lines[2:5]] == [share.name for share in found[:3]]
    assert lines[5][:2] == [f"{len(found) - 3}", "others"]
    assert lines[6][0] == "all"
