"""What identifies a build, and the locks that it is held to. Building itself: tests/sif."""

from __future__ import annotations

import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from rich.console import Console
from skiff.errors import ImageError
from skiff.images import build, definitions
from skiff.images.build import Options, build_images
from skiff.images.definitions import IMAGES, build_key, find_image, source_files, with_bases
from skiff.images.pins import debian_differences, differences, read_debian_lock, read_pins

ROOT = Path(__file__).resolve().parents[2]


def test_bases_come_first_and_once() -> None:
    names = [image.name for image in with_bases(["trainer-cpu", "runtime", "trainer-cpu"])]
    assert names == ["base", "trainer-cpu", "runtime"]


def test_an_unknown_image_names_those_there_are() -> None:
    with pytest.raises(ImageError, match="there is no such image") as caught:
        find_image("trainer-tpu")
    assert "base runtime trainer-cpu trainer" in caught.value.remedy


@pytest.mark.parametrize("image", IMAGES.values(), ids=lambda image: str(image.name))
def test_each_image_has_its_files_and_packages(image: definitions.Image) -> None:
    assert image.definition.is_file()
    assert definitions.debian_names(image.name)
    assert image.lock_file is None or read_pins(image.lock_file)[1] == []
    text = image.definition.read_text()
    for section in ("%labels", "%help", "%post", "%runscript", "%test"):
        assert section in text


def test_the_key_follows_what_a_build_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    image = find_image("runtime")
    key = build_key(image, {"VERSION": "1"}, "base")
    assert build_key(image, {"VERSION": "1"}, "base") == key
    assert build_key(image, {"VERSION": "2"}, "base") != key
    assert build_key(image, {"VERSION": "1"}, "another base") != key
    monkeypatch.setattr(definitions, "source_files", lambda: source_files()[1:])
    assert build_key(image, {"VERSION": "1"}, "base") != key


def test_the_sources_are_the_clones_files_and_always_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one.tar", "two.tar"):
        definitions.write_sources(tmp_path / name, epoch=1)
    assert (tmp_path / "one.tar").read_bytes() == (tmp_path / "two.tar").read_bytes()
    with tarfile.open(tmp_path / "one.tar") as tar:
        names = tar.getnames()
        assert tar.getmember("entrypoints/runtime").mode == 0o755
    assert {"VERSION", "python/skiff/cli.py", "containers/install"} <= set(names)
    assert not [name for name in names if "__pycache__" in name or name.startswith("tests/")]


def test_every_lock_agrees_with_pyproject() -> None:
    assert differences(ROOT) == []


def test_a_lock_that_does_not_agree_builds_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = ["locks/runtime.txt: left-pad is missing"]
    monkeypatch.setattr(build, "differences", lambda root, locks: found)
    with pytest.raises(ImageError, match="left-pad is missing") as caught:
        build_images(["runtime"], Options(output=tmp_path / "sif"), Console())
    assert "make lock" in caught.value.remedy
    assert not (tmp_path / "sif").exists()


def test_a_debian_package_of_another_version_is_named(tmp_path: Path) -> None:
    lock = tmp_path / "debian.txt"
    lock.write_text("# made by a test\nbash=5.2\ntar=1.34 # comment\n")
    locked = read_debian_lock(lock)
    assert locked == {"bash": "5.2", "tar": "1.34"}
    assert debian_differences({"bash": "5.2"}, locked) == []
    assert debian_differences({"bash": "5.3", "git": "2"}, locked) == [
        "bash: 5.3 is installed, 5.2 is locked",
        "git: 2 is installed, no version is locked",
    ]


def test_an_interpreter_that_cannot_be_copied(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    with pytest.raises(ImageError, match="not the tree of a Python") as caught:
        build._interpreter(Options(output=tmp_path, python=tmp_path))
    assert "--python FOLDER" in caught.value.remedy


def test_bad_input_of_the_command(tmp_path: Path) -> None:
    for words, told in (
        (["build", "trainer-tpu"], "there is no such image"),
        (["verify", str(tmp_path / "none.sif")], "make build-sif"),
        (["inspect", str(ROOT / "VERSION")], "is no SIF file"),
        (["build", "--base", "debian:12", "--output", str(tmp_path)], "docker://NAME"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "skiff.cli", "images", *words],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode != 0
        assert told in done.stderr.replace("\n", " ")
        assert "Traceback" not in done.stderr
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".sif"] == []
