"""Import, list and prune with the real podman, and with SIF files made by the real Apptainer."""

from __future__ import annotations

import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import cli
from skiff.errors import ImageError, InfraError
from skiff.image_use import file_name, last_used
from skiff.images.archive import detect
from skiff.images.podman_store import PodmanStore
from skiff.images.pull import Puller
from skiff.images.store import find
from skiff.podman import check_podman, isolation, podman_root

pytestmark = pytest.mark.usefixtures("podman_store")
BUSYBOX = Path("/bin/busybox")
Make = Callable[[Path], Path]


def rootfs(folder: Path) -> Path:
    """A root file system: a busybox that calls itself after the folder."""
    (folder / "bin").mkdir(parents=True)
    (folder / "etc").mkdir()
    shutil.copy2(BUSYBOX, folder / "bin")
    (folder / "bin" / "sh").symlink_to("busybox")
    (folder / "bin" / "cat").symlink_to("busybox")
    (folder / "etc" / "who").write_text("I am the one\n")
    return folder


def rootfs_tar(folder: Path) -> Path:
    with tarfile.open(folder / "root.tar.gz", "w:gz") as archive:
        archive.add(rootfs(folder / "tree"), ".")
    return folder / "root.tar.gz"


def saved(form: str) -> Make:
    def make(folder: Path) -> Path:
        check_podman(["import", "--quiet", str(rootfs_tar(folder)), "localhost/brought:1"])
        target = folder / "image"
        check_podman(
            ["save", "--quiet", f"--format={form}", f"--output={target}", "localhost/brought:1"]
        )
        check_podman(["image", "rm", "localhost/brought:1"])
        return target

    return make


FORMS: dict[str, Make] = {
    "rootfs": lambda folder: rootfs(folder / "tree"),
    "rootfs-tar": rootfs_tar,
    "docker-archive": saved("docker-archive"),
    "oci-archive": saved("oci-archive"),
    "oci": saved("oci-dir"),
}


def say(name: str) -> str:
    run = ["run", "--rm", "--network=none", *isolation().arguments(), name]
    return check_podman([*run, "cat", "/etc/who"]).decode()


@pytest.mark.parametrize("form", FORMS)
def test_podman_takes_in(form: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = f"localhost/taken/{form}:1"
    assert cli.main(["images", "import", str(FORMS[form](tmp_path)), name]) == 0
    assert f"imported ({form})" in capsys.readouterr().out
    assert say(name) == "I am the one\n"
    image = find(PodmanStore(), name)
    assert image is not None
    assert image.names == (name,)
    assert time.time() - image.used < 100
    assert list((podman_root() / "tmp").iterdir()) == []


def test_the_names_in_an_archive_take_nobodys_place(tmp_path: Path) -> None:
    archive = detect(saved("docker-archive")(tmp_path))
    (tmp_path / "other").mkdir()
    check_podman(["import", "--quiet", str(rootfs_tar(tmp_path / "other")), "localhost/brought:1"])
    before = find(PodmanStore(), "localhost/brought:1")
    PodmanStore().add(archive, "localhost/taken/new:1")
    new = find(PodmanStore(), "localhost/taken/new:1")
    assert new is not None
    assert new.names == ("localhost/taken/new:1",)
    assert find(PodmanStore(), "localhost/brought:1") == before
    PodmanStore().add(archive, "localhost/brought:1")
    assert find(PodmanStore(), "localhost/brought:1") == find(PodmanStore(), "taken/new:1")


def test_a_broken_archive_is_one_error(tmp_path: Path) -> None:
    broken = tmp_path / "image.tar"
    with tarfile.open(broken, "w") as archive:
        (tmp_path / "manifest").write_text('[{"Config": "gone.json", "Layers": []}]')
        archive.add(tmp_path / "manifest", "manifest.json")
    before = PodmanStore().images()
    with pytest.raises(InfraError, match="podman pull"):
        PodmanStore().add(detect(broken), "localhost/broken:1")
    assert PodmanStore().images() == before


def test_podman_cannot_take_a_sif(tmp_path: Path) -> None:
    path = tmp_path / "image.sif"
    path.write_bytes(b"#!/usr/bin/env run-singularity\n\0SIF_MAGIC\0")
    with pytest.raises(ImageError, match="podman cannot run a SIF file"):
        PodmanStore().add(detect(path), "localhost/sif:1")


def test_list_and_prune(
    registry: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    names = {kind: registry.add(f"listed/{kind}", kib=256) for kind in ("old", "used", "new")}
    Puller(PodmanStore(verify_tls=False)).pull(list(names.values()))
    check_podman(["create", "--name=user", names["used"], "/noise"])
    for kind in ("old", "used"):
        mark = podman_root() / "last-use" / file_name(names[kind])
        os.utime(mark, (time.time() - 90_000,) * 2)

    assert cli.main(["images", "list", "--json"]) == 0
    listed = {"".join(row["names"][:1]): row for row in json.loads(capsys.readouterr().out)}
    assert listed[names["used"]]["sandboxes"] == 1
    assert listed[names["old"]]["sandboxes"] == 0
    assert listed[names["old"]]["digest"] == registry.digest(names["old"])
    assert listed[names["old"]]["store"] == "podman"
    assert 80_000 < time.time() - listed[names["old"]]["used"] < 100_000
    assert cli.main(["images", "list"]) == 0
    table = capsys.readouterr().out
    assert all(name in table for name in names.values())

    assert cli.main(["images", "prune", "--older-than", "1d", "--dry-run"]) == 0
    assert (
        capsys.readouterr().out == f"would be removed: {names['old']}\n1 images would be removed\n"
    )
    assert cli.main(["images", "prune", "--older-than", "1d"]) == 0
    assert capsys.readouterr().out == f"removed: {names['old']}\n1 images removed\n"
    assert find(PodmanStore(), names["old"]) is None
    assert last_used(podman_root(), names["old"]) == 0
    assert find(PodmanStore(), names["used"]) is not None
    image = find(PodmanStore(), names["used"])
    assert image is not None
    assert PodmanStore().remove(image) is False
    check_podman(["rm", "user"])
    assert cli.main(["images", "prune", "--max-gib", "0"]) == 0
    assert find(PodmanStore(), names["new"]) is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["pull"], "names no image"),
        (["prune"], "give --older-than, --max-gib or both"),
        (["import", "{tmp}/none", "localhost/x:1"], "No such file"),
        (["pull", "{tmp}/none.toml"], "no such profile"),
        (["pull", "shell:nothing"], "unknown split"),
    ],
)
def test_faults(
    arguments: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["images", *(word.format(tmp=tmp_path) for word in arguments)]) == 2
    assert words in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("age", ["7", "d", "1.5h", "7w", ""])
def test_ages(age: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["images", "prune", "--older-than", age])
    assert "such as 7d" in capsys.readouterr().err
