"""The sandbox base image: what is in it, when it is built again, what is said when it can't be."""

from __future__ import annotations

import stat
from dataclasses import replace
from pathlib import Path

import pytest
from skiff.errors import InfraError
from skiff.images import sandbox
from skiff.images.debian import host_mirrors, read_recipe
from skiff.images.sandbox import ensure_sandbox_image, image_label, sandbox_recipe, sandbox_rootfs
from skiff.podman import image_exists, isolation, run_podman
from skiff.tasks.shell import IMAGE

OTHER = "localhost/skiff/test-sandbox:1"


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty PATH to put stand-ins on."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("SKIFF_HOME", str(tmp_path / "home"))
    return folder


def stand_in(folder: Path, name: str, script: str) -> None:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)


def test_the_image_has_what_tasks_need() -> None:
    ensure_sandbox_image()
    assert ensure_sandbox_image() is False
    assert image_label(IMAGE, sandbox.LABEL) == sandbox_recipe().digest
    show = "bash --version; git --version; patch --version; ps; python3 --version; locale"
    done = run_podman(
        ["run", "--rm", "--network=none", *isolation().arguments(), IMAGE, "sh", "-ec", show]
    )
    assert done.returncode == 0, done.stderr
    assert f"Python {sandbox.PYTHON}.".encode() in done.stdout
    assert b"LANG=C.UTF-8" in done.stdout


def test_another_recipe_is_another_image() -> None:
    """A changed digest imports anew; the tar in the cache is used, so no network is needed."""
    ensure_sandbox_image()
    recipe = sandbox_recipe()
    cached = sandbox_rootfs(recipe)
    changed = replace(recipe, digest="0123456789abcdef")
    (cached.parent / f"sandbox-{changed.digest}.tar").symlink_to(cached)
    try:
        assert ensure_sandbox_image(recipe, name=OTHER) is True
        assert ensure_sandbox_image(recipe, name=OTHER) is False
        assert ensure_sandbox_image(changed, name=OTHER) is True
        assert image_label(OTHER, sandbox.LABEL) == changed.digest
    finally:
        (cached.parent / f"sandbox-{changed.digest}.tar").unlink()
        run_podman(["image", "rm", "--force", OTHER])
    assert not image_exists(OTHER)


def test_no_image_no_label() -> None:
    assert image_label("localhost/skiff/none:1", sandbox.LABEL) is None


def test_mmdebstrap_is_missing(programs: Path) -> None:
    with pytest.raises(InfraError, match="mmdebstrap is not installed") as caught:
        sandbox_rootfs(sandbox_recipe())
    assert "install the package mmdebstrap" in caught.value.remedy


def test_uidmap_is_missing(programs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.getuid", lambda: 1000)
    stand_in(programs, "mmdebstrap", "exit 0")
    with pytest.raises(InfraError, match="newuidmap is not installed") as caught:
        sandbox_rootfs(sandbox_recipe())
    assert "uidmap" in caught.value.remedy


def test_mmdebstraps_own_words(programs: Path, tmp_path: Path) -> None:
    stand_in(programs, "mmdebstrap", "echo 'E: no route to mirror' >&2; exit 7")
    stand_in(programs, "newuidmap", "exit 0")
    with pytest.raises(InfraError, match="exit 7: E: no route to mirror"):
        sandbox_rootfs(sandbox_recipe())
    assert list((tmp_path / "home" / "images").iterdir()) == []


def test_the_tar_is_built_once_and_whole(programs: Path) -> None:
    stand_in(programs, "newuidmap", "exit 0")
    stand_in(
        programs,
        "mmdebstrap",
        'for word in "$@"; do\n'
        'case $word in *.tar) echo "$SOURCE_DATE_EPOCH $*" > "$word";; esac\ndone',
    )
    recipe = sandbox_recipe()
    tar = sandbox_rootfs(recipe)
    words = tar.read_text()
    assert words.startswith(str(recipe.epoch))
    assert "--include=git,patch,procps,python3" in words
    (programs / "mmdebstrap").unlink()
    assert sandbox_rootfs(recipe) == tar
    assert [path.name for path in tar.parent.iterdir()] == [tar.name]


def test_the_hosts_own_mirrors(programs: Path) -> None:
    lines = (
        "http://mirror/debian bookworm main",
        "http://mirror/debian bookworm main",
        "http://mirror/debian bookworm contrib",
        "http://mirror/security bookworm-security main",
        "http://vendor/apt nodistro main",
    )
    stand_in(programs, "apt-get", "\n".join(f"echo '{line}'" for line in lines))
    assert host_mirrors("bookworm") == [
        "deb http://mirror/debian bookworm main",
        "deb http://mirror/security bookworm-security main",
    ]
    assert host_mirrors("trixie") == []


def test_no_apt_no_mirrors(programs: Path) -> None:
    assert host_mirrors("bookworm") == []


def test_an_incomplete_recipe(tmp_path: Path) -> None:
    with pytest.raises(InfraError, match="no usable recipe"):
        read_recipe(tmp_path / "none.toml")
    (tmp_path / "recipe.toml").write_text('suite = "bookworm"\n')
    with pytest.raises(InfraError, match="KeyError"):
        read_recipe(tmp_path / "recipe.toml")
