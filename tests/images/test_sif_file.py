"""SIF files made and read here, with the real Apptainer as the judge."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from skiff.apptainer import apptainer_environment, find_apptainer, inspect_tree
from skiff.errors import ConfigError, ImageError, InfraError
from skiff.images.reproduce import squash
from skiff.images.sif import INSPECT, assemble
from skiff.images.signature import make_key, sign, verify
from skiff.sif import ObjectType, image_time, read_object, read_objects, root_offset

EPOCH = 1_735_689_600
SBOM = b'{"bomFormat": "CycloneDX", "specVersion": "1.6"}\n'
RUN = ("run", "--unsquash")  # some machines let only root mount it
LABELS = {"version": "1.2.3", "skiff.image": "small"}


def apptainer(*arguments: str | Path, mapped: Sequence[str] = ()) -> str:
    """What `apptainer ARGUMENTS` prints."""
    done = subprocess.run(
        [*mapped, find_apptainer(), "--quiet", *arguments],
        env=apptainer_environment() | {"APPTAINER_MESSAGELEVEL": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unpacked image that is one busybox."""
    folder = tmp_path_factory.mktemp("tree")
    (folder / "root" / "bin").mkdir(parents=True)
    shutil.copy("/bin/busybox", folder / "root" / "bin")
    (folder / "root" / "bin" / "sh").symlink_to("busybox")
    (folder / "my.def").write_text(
        f"Bootstrap: localimage\nFrom: {folder}/root\n"
        "%labels\n version 1.2.3\n skiff.image small\n"
        '%runscript\n exec busybox echo "it says" "$@"\n%help\n It helps.\n'
    )
    command = ["build", "--userns", "--sandbox", folder / "tree", folder / "my.def"]
    apptainer(*command, mapped=["unshare", "--map-root-user"])
    return folder / "tree"


@pytest.fixture(scope="module")
def squashfs(tree: Path) -> Path:
    target = tree.with_name("squashfs")
    squash(tree, target, epoch=EPOCH, processors=1)
    return target


@pytest.fixture(scope="module")
def described(tree: Path) -> bytes:
    return inspect_tree(tree)


@pytest.fixture
def image(squashfs: Path, described: bytes, tmp_path: Path) -> Path:
    """A SIF with everything that ours hold."""
    made(squashfs, described, tmp_path / "image.sif")
    return tmp_path / "image.sif"


def made(squashfs: Path, described: bytes, target: Path) -> None:
    assemble(
        squashfs,
        target,
        definition=b"Bootstrap: localimage\nFrom: root\n",
        labels=LABELS,
        epoch=EPOCH,
        extra={
            INSPECT: described,
            "lock.txt": b"rich==14.0.0\n",
            "sbom.cdx.json": SBOM,
            "manifest.json": b'{"name": "small"}\n',
        },
    )


def test_apptainer_runs_and_describes_it(image: Path) -> None:
    mapped = ["unshare", "--map-root-user"]
    assert apptainer(*RUN, image, "a", "b", mapped=mapped) == "it says a b\n"
    assert "version: 1.2.3" in apptainer("inspect", image)
    assert apptainer("inspect", "--deffile", image) != ""
    assert apptainer("run-help", image).strip() == "It helps."
    assert "it says" in apptainer("inspect", "--runscript", image)


def test_it_is_a_program(image: Path, tmp_path: Path) -> None:
    """The kernel starts a SIF by its first line, which names an old name of Apptainer's."""
    assert os.access(image, os.X_OK)
    assert image.read_bytes().startswith(b"#!/usr/bin/env run-singularity\n\0")


def test_the_same_content_at_another_time_is_the_same_file(
    image: Path, squashfs: Path, described: bytes, tmp_path: Path
) -> None:
    begun = int(time.time())
    while int(time.time()) <= begun:
        time.sleep(0.05)
    made(squashfs, described, tmp_path / "other.sif")
    assert (tmp_path / "other.sif").read_bytes() == image.read_bytes()
    shown = apptainer("sif", "header", image)
    assert shown.count("2025-01-01 00:00:00") == 2
    assert image_time(image) == EPOCH
    other = shutil.copy(squashfs, tmp_path / "squashfs")
    with other.open("ab") as file:
        file.write(bytes(4096))
    made(other, described, tmp_path / "other.sif")
    theirs = apptainer("sif", "header", tmp_path / "other.sif")
    assert identity(theirs) != identity(shown)


def identity(header: str) -> str:
    return next(line for line in header.splitlines() if line.startswith("ID:"))


def test_what_it_holds_is_what_apptainer_says(image: Path) -> None:
    objects = read_objects(image)
    rows = [line.split("|") for line in apptainer("sif", "list", image).splitlines() if "|" in line]
    listed = [[cell.strip() for cell in row] for row in rows[1:]]
    assert [[str(one.number), str(one.group)] for one in objects] == [row[:2] for row in listed]
    assert [f"{one.offset}-{one.offset + one.size}" for one in objects] == [r[3] for r in listed]
    kinds = [one.type for one in objects]
    assert kinds.count(ObjectType.DEFINITION) == kinds.count(ObjectType.SBOM) == 1
    assert [row[4] for row in listed][-1] == "FS (Squashfs/*System/amd64)"
    for one in objects[:-1]:
        dumped = apptainer("sif", "dump", str(one.number), image)
        assert read_object(image, one.name).decode() == dumped
    assert read_object(image, "sbom.cdx.json") == SBOM
    assert json.loads(read_object(image, "labels.json")) == LABELS
    with image.open("rb") as file:
        file.seek(root_offset(image))
        assert file.read(4) == b"hsqs"


def test_a_sif_of_apptainers_own(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "image.sif"
    apptainer("build", target, tree, mapped=["unshare", "--map-root-user"])
    assert "inspect-metadata.json" in {one.name for one in read_objects(target)}
    assert root_offset(target) % 4096 == 0
    with pytest.raises(ImageError, match=r"holds no manifest\.json"):
        read_object(target, "manifest.json")


def test_files_that_are_no_sif(image: Path, tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_objects(tmp_path / "none.sif")
    (tmp_path / "text").write_text("text")
    with pytest.raises(ImageError, match="is no SIF file"):
        read_objects(tmp_path / "text")
    (tmp_path / "cut.sif").write_bytes(image.read_bytes()[:10_000])
    with pytest.raises(ImageError, match="is cut off"):
        read_objects(tmp_path / "cut.sif")


def test_a_failed_assembly_leaves_the_old_file(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    with pytest.raises(InfraError, match="no such file"):
        made(tmp_path / "none", b"{}", image)
    assert image.read_bytes() == before
    assert list(tmp_path.iterdir()) == [image]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_key(tmp_path_factory.mktemp("keys") / "site")


def test_a_key_is_its_owners(keys: tuple[Path, Path]) -> None:
    private, public = keys
    assert private.stat().st_mode & 0o777 == 0o600
    assert "PRIVATE" not in public.read_text()
    before = private.read_bytes()
    with pytest.raises(ConfigError, match="is there already"):
        make_key(private.parent)
    assert private.read_bytes() == before
    assert {path.name for path in private.parent.iterdir()} == {private.name, public.name}


def test_a_signed_image_verifies_runs_and_is_the_same_each_time(
    image: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    copy = shutil.copy(image, tmp_path / "copy.sif")
    sign(image, keys[0])
    verify(image, keys[1])
    assert "it says" in apptainer(*RUN, image, mapped=["unshare", "--map-root-user"])
    assert read_object(image, "sbom.cdx.json") == SBOM
    begun = int(time.time())
    while int(time.time()) <= begun:
        time.sleep(0.05)
    sign(copy, keys[0])
    assert copy.read_bytes() == image.read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"image.sif", "copy.sif"}


def test_signing_again_replaces_the_signature(
    image: Path, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    sign(image, keys[0])
    private, public = make_key(tmp_path / "new")
    sign(image, private)
    verify(image, public)
    with pytest.raises(ImageError, match="is signed with another key"):
        verify(image, keys[1])


def test_an_image_without_a_signature(image: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(ImageError, match="is not signed") as caught:
        verify(image, keys[1])
    assert "skiff images sign" in caught.value.remedy


@pytest.mark.parametrize("part", ["root", "sbom.cdx.json", "descriptor", "launch script"])
def test_an_image_that_was_changed(image: Path, keys: tuple[Path, Path], part: str) -> None:
    sign(image, keys[0])
    places = {one.name: one.offset + one.size // 2 for one in read_objects(image)}
    places |= {"descriptor": 4096 + 73, "launch script": 5}
    damage(image, places[part])
    with pytest.raises(ImageError, match="was changed after it was signed"):
        verify(image, keys[1])


@pytest.mark.parametrize("group", ["0", "1", "2"])
def test_an_object_that_was_added(
    image: Path, keys: tuple[Path, Path], tmp_path: Path, group: str
) -> None:
    sign(image, keys[0])
    (tmp_path / "more").write_bytes(b"more")
    apptainer("sif", "add", "--datatype=7", f"--groupid={group}", image, tmp_path / "more")
    with pytest.raises(ImageError, match="was changed after it was signed"):
        verify(image, keys[1])


@pytest.mark.parametrize("name", ["definition", "sbom.cdx.json", "root"])
def test_an_object_that_was_removed(image: Path, keys: tuple[Path, Path], name: str) -> None:
    sign(image, keys[0])
    number = next(one.number for one in read_objects(image) if one.name == name)
    apptainer("sif", "del", str(number), image)
    with pytest.raises(ImageError, match="was changed after it was signed"):
        verify(image, keys[1])


def test_a_damaged_signature(image: Path, keys: tuple[Path, Path]) -> None:
    sign(image, keys[0])
    damage(image, read_objects(image)[-1].offset + 300)
    with pytest.raises(ImageError, match="or its signature is damaged"):
        verify(image, keys[1])


def damage(path: Path, place: int) -> None:
    """Change one byte of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        byte = file.read(1)
        file.seek(place)
        file.write(bytes([byte[0] ^ 1]))


def test_keys_that_are_none(image: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    private, public = keys
    before = image.read_bytes()
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        sign(image, tmp_path / "none.pem")
    with pytest.raises(ConfigError, match="holds no private key"):
        sign(image, public)
    with pytest.raises(ConfigError, match="holds no public key"):
        verify(image, private)
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no PEM file"):
        verify(image, tmp_path / "binary")
    readable = shutil.copy(private, tmp_path / "readable.pem")
    readable.chmod(0o640)
    with pytest.raises(ConfigError, match="can be read or changed by others"):
        sign(image, readable)
    (tmp_path / "damaged.pem").write_text("-----BEGIN PRIVATE KEY-----\nx\n")
    (tmp_path / "damaged.pem").chmod(0o600)
    with pytest.raises(InfraError, match="apptainer sign"):
        sign(image, tmp_path / "damaged.pem")
    assert image.read_bytes() == before
