"""What every image promises, asked through spython as a user's script would."""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff.apptainer import apptainer_environment, find_apptainer
from skiff.images.definitions import DEFAULT, IMAGES, ROOT, release_version
from skiff.images.runnable import runnable
from skiff.images.selftest import ENTRY_POINTS
from skiff.images.verify import inspect_image, verify_image
from spython.main import Client

ISOLATED = ["--userns", "--contain", "--cleanenv", "--no-home"]
PYTHON = "/opt/python/bin/python3"


def execute(place: Path, *command: str, options: tuple[str, ...] = ()) -> str:
    """What a command in the image says; Apptainer's own warnings come last."""
    done = Client.execute(
        str(place), list(command), options=[*ISOLATED, *options], return_result=True, quiet=True
    )
    assert done["return_code"] == 0, done["message"]
    message = done["message"]
    return message if isinstance(message, str) else "".join(message)


def test_its_own_test_and_lock(image: str, sif: Callable[[str], Path]) -> None:
    found = verify_image(sif(image))
    assert found[-1] == "its own test passes"
    assert f'"version": "{release_version()}"' in inspect_image(sif(image))


def test_versions(image: str, place: Path) -> None:
    assert execute(place, PYTHON, "--version").startswith("Python 3.12.")
    if IMAGES[image].lock:
        assert (
            execute(place, "/opt/python/bin/skiff", "--version").splitlines()[0]
            == release_version()
        )


@pytest.mark.parametrize("image", [name for name in DEFAULT if name in ENTRY_POINTS])
def test_the_entry_point_takes_the_same_arguments(image: str, place: Path) -> None:
    inside = subprocess.run(
        [find_apptainer(), "--silent", "run", *ISOLATED, place, "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    outside = subprocess.run(
        [sys.executable, ROOT / "entrypoints" / ENTRY_POINTS[image], "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert inside.stdout == outside.stdout


def test_help_reads_like_a_man_page(image: str, place: Path) -> None:
    told = execute(place, "cat", "/.singularity.d/runscript.help")
    assert "SYNOPSIS" in told
    assert f"skiff-{image}" in told
    assert "{{" not in told


def test_nothing_of_the_host_leaks_in(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("A_SECRET", "leaked")
    (tmp_path / "marker.py").write_text("")
    told = execute(place, PYTHON, "-c", "import os, sys; print(sys.path, dict(os.environ))")
    assert str(tmp_path) not in told
    assert "leaked" not in told
    assert "site-packages" in told


def test_the_image_is_read_only(place: Path) -> None:
    script = "import pathlib; pathlib.Path('/opt/python/new').touch()"
    done = Client.execute(
        str(place), [PYTHON, "-c", script], options=ISOLATED, return_result=True, quiet=True
    )
    assert done["return_code"] != 0
    assert "Read-only file system" in str(done["message"])


def test_any_user_may_read_it(place: Path) -> None:
    private = ["-type", "f", "!", "-perm", "-o=r", "-o", "-type", "d", "!", "-perm", "-o=rx"]
    assert "/opt" not in (told := execute(place, "find", "/opt", "/usr", *private)), told
    assert "/usr" not in told


def test_it_runs_unpacked_by_an_ordinary_user(
    sif: Callable[[str], Path], common: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where FUSE is closed to the user: nobody if we may become that, else ourselves."""
    monkeypatch.setattr("skiff.images.runnable.FUSE", common / "none")
    monkeypatch.setenv("SKIFF_APPTAINER_ROOT", str(common / "apptainer"))
    place = runnable(sif("base"))
    assert place.is_dir()
    assert runnable(sif("base")) == place
    other: dict[str, Any] = {}
    if os.getuid() == 0:
        nobody = pwd.getpwnam("nobody")
        other = {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}
    script = "import os, tempfile; tempfile.TemporaryFile(); print(os.getuid())"
    done = subprocess.run(
        [find_apptainer(), "--silent", "exec", *ISOLATED, place, PYTHON, "-c", script],
        capture_output=True,
        text=True,
        check=False,
        env=apptainer_environment(),
        **other,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == str(other.get("user", os.getuid()))


def test_no_mirror_of_the_building_site_stays(place: Path) -> None:
    told = execute(place, "find", "/etc/apt", "/mnt", "-type", "f", "-name", "*sources*")
    assert "sources.list" not in told
