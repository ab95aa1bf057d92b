"""The files in which two images differ are named, each with its reason."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.errors import ImageError
from skiff.images.differences import differing_files
from skiff.images.reproduce import normalise, squash
from skiff.images.sif import assemble

EPOCH = 1_735_689_600


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A tree with every kind of file and names that need care."""
    root = tmp_path / "tree"
    (root / "a folder").mkdir(parents=True)
    (root / "a folder" / 'q"uo\\te é').write_text("quoted\n")
    (root / "large").write_bytes(os.urandom(3_000_000))
    (root / "sparse").touch()
    os.truncate(root / "sparse", 2_000_000)
    (root / "empty").touch()
    (root / "link").symlink_to("a folder/with blank")
    os.link(root / "large", root / "second name")
    os.mkfifo(root / "pipe")
    normalise(root, EPOCH)
    return root


def sif(tree: Path, target: Path, **extra: bytes) -> Path:
    squash(tree, target.with_suffix(".squashfs"), epoch=EPOCH, processors=2)
    assemble(
        target.with_suffix(".squashfs"),
        target,
        definition=b"Bootstrap: localimage\n",
        labels={},
        epoch=EPOCH,
        extra=extra,
    )
    return target


def test_a_sif_is_the_tree_it_was_made_of(tree: Path, tmp_path: Path) -> None:
    assert differing_files(tree, sif(tree, tmp_path / "a.sif")) == []


def write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def link(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda root: write(root / "a folder" / 'q"uo\\te é', b"other\n"), "content"),
    "mode": (lambda root: (root / "empty").chmod(0o700), "mode 644 or 700"),
    "link": (lambda root: link(root / "link", "b"), "link to a folder/with blank or b"),
    "kind": (lambda root: link(root / "pipe", "b"), "pipe or socket or link"),
    "more": (lambda root: (root / "new").touch(), "not in"),
    "less": (lambda root: (root / "empty").unlink(), "not in"),
    "second name": (lambda root: (root / "second name").unlink(), "not in"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_one_difference(tree: Path, tmp_path: Path, change: str) -> None:
    (tree / "empty").chmod(0o644)
    other = tmp_path / "other"
    shutil.copytree(tree, other, symlinks=True, copy_function=shutil.copy2, ignore=pipes)
    os.mkfifo(other / "pipe")
    make, reason = CHANGES[change]
    make(other)
    normalise(other, EPOCH)
    (line,) = differing_files(tree, other)
    assert reason in line
    images = sif(tree, tmp_path / "a.sif"), sif(other, tmp_path / "b.sif")
    (line,) = differing_files(*images)
    assert reason in line
    (line,) = differing_files(images[0], other)
    assert reason in line


def test_a_time(tree: Path, tmp_path: Path) -> None:
    image = sif(tree, tmp_path / "a.sif")
    os.utime(tree / "empty", (0, 0))
    assert differing_files(image, tree) == [f"/empty: time {EPOCH} or 0"]


def pipes(_: str, names: list[str]) -> list[str]:
    return [name for name in names if name == "pipe"]


def test_what_lies_beside_the_file_system(tree: Path, tmp_path: Path) -> None:
    one = sif(tree, tmp_path / "a.sif", **{"lock.txt": b"a", "manifest.json": b"{}"})
    other = sif(tree, tmp_path / "b.sif", **{"lock.txt": b"b"})
    assert differing_files(one, other) == [
        "SIF object lock.txt: content",
        f"SIF object manifest.json: not in {other}",
    ]


def test_what_is_no_image(tree: Path, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text")
    with pytest.raises(ImageError, match="is no SIF file"):
        differing_files(tree, tmp_path / "text")
    with pytest.raises(ImageError, match="cannot be read"):
        differing_files(tree, tmp_path / "none")
