"""What a file or folder holds is told by its content, whatever its name."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from skiff.errors import ImageError
from skiff.images.archive import Kind, detect


def tar(path: Path, *names: str) -> Path:
    with tarfile.open(path, "w") as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size = 2
            archive.addfile(entry, io.BytesIO(b"{}"))
    return path


@pytest.mark.parametrize(
    ("names", "kind"),
    [
        (["0123.tar", "0123.json", "manifest.json", "repositories"], Kind.DOCKER_ARCHIVE),
        (["blobs/sha256/0123", "index.json", "oci-layout"], Kind.OCI_ARCHIVE),
        (["oci-layout", "index.json", "manifest.json"], Kind.DOCKER_ARCHIVE),
        (["usr/bin/sh", "etc/passwd"], Kind.ROOTFS_TAR),
        (["./", "./boot/x", "./bin/sh", "./manifest.json"], Kind.ROOTFS_TAR),
        (["/data", "/etc/passwd"], Kind.ROOTFS_TAR),
    ],
)
def test_tar_files(tmp_path: Path, names: list[str], kind: Kind) -> None:
    path = tar(tmp_path / "any.name", *names)
    assert detect(path).kind is kind
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    assert detect(packed).kind is kind
    assert detect(packed).path == packed


def test_folders(tmp_path: Path) -> None:
    for name in ("root/etc", "root/bin", "layout/blobs"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "layout" / "oci-layout").touch()
    (tmp_path / "layout" / "index.json").touch()
    assert detect(tmp_path / "root").kind is Kind.ROOTFS
    assert detect(tmp_path / "layout").kind is Kind.OCI
    assert detect(tmp_path / "layout").source == f"oci:{tmp_path}/layout"


def test_a_sif_file(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0")
    assert detect(path).kind is Kind.SIF


@pytest.mark.parametrize("content", [b"", b"text", gzip.compress(b"text"), b"\0" * 10240])
def test_no_image(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "file.tar"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"file\.tar"):
        detect(path)


def test_neither_image_nor_there(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="holds no image"):
        detect(tar(tmp_path / "songs.tar", "song.mp3", "cover.png"))
    with pytest.raises(ImageError, match="holds no image"):
        detect(tmp_path)
    with pytest.raises(ImageError, match="No such file"):
        detect(tmp_path / "gone")


def test_a_tar_file_that_is_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "cut.tar.gz"
    whole = gzip.compress(tar(tmp_path / "whole", "a" * 50, "b" * 50).read_bytes())
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match="cannot be read"):
        detect(path)
