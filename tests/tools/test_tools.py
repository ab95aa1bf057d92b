"""The scripts below tools/ and the Makefile, run as a user runs them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run in the repository root with `env` over this process's environment."""
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **env}, capture_output=True, text=True, check=False
    )


@pytest.fixture
def bare_path(tmp_path: Path) -> str:
    """A PATH with the basic programs of a system, and neither python nor podman."""
    for program in ("bash", "env", "dirname", "id", "awk", "cat"):
        found = shutil.which(program)
        assert found, program
        (tmp_path / program).symlink_to(found)
    return str(tmp_path)


def test_find_python_finds_a_312() -> None:
    result = run("tools/find-python")
    assert result.returncode == 0, result.stderr
    shown = run(result.stdout.strip(), "--version").stdout
    assert shown.startswith("Python 3.12.")


def test_find_python_refuses_a_wrong_choice() -> None:
    result = run("tools/find-python", PYTHON="/bin/false")
    assert result.returncode == 2
    assert "PYTHON=/bin/false is not a Python 3.12" in result.stderr
    assert result.stdout == ""


def test_find_python_says_when_there_is_none(bare_path: str, tmp_path: Path) -> None:
    scripts = tmp_path / "clone" / "tools"
    shutil.copytree(ROOT / "tools", scripts)
    result = run(str(scripts / "find-python"), PATH=bare_path, HOME=str(tmp_path), PYENV_ROOT="")
    assert result.returncode == 2
    assert "no Python 3.12 was found, and uv could not fetch one" in result.stderr
    assert "make PYTHON=/path/to/python3.12" in result.stderr


def test_install_names_the_platforms() -> None:
    result = run("tools/install", "tpu")
    assert result.returncode == 2
    assert "no lock for PLATFORM=tpu" in result.stderr
    assert "cpu cuda" in result.stderr


def test_host_programs_tells_the_administrators_command(bare_path: str, tmp_path: Path) -> None:
    """Without apt-get on PATH nothing can be installed, by root or by anybody else."""
    script = (ROOT / "tools/host-programs").read_text()
    searched = "PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin"
    assert searched in script
    copy = tmp_path / "host-programs"
    copy.write_text(script.replace(searched, ""))
    result = run("bash", str(copy), PATH=bare_path)
    assert result.returncode == 1
    assert "missing on this host: podman runc mmdebstrap uidmap slirp4netns git" in result.stderr
    assert "apt-get install --no-install-recommends podman runc" in result.stderr


def test_host_programs_are_here() -> None:
    result = run("tools/host-programs")
    assert result.returncode == 0, result.stderr
    assert result.stdout == ""  # nothing left to do


def test_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z][a-z-]*):(?!=)", makefile, re.MULTILINE))
    listed = {line.split()[0] for line in run("make", "--silent").stdout.splitlines()}
    assert {"demo", "test", "lint", "help"} <= targets
    assert listed == targets


def test_version_stands_in_one_place() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    assert project["project"]["dynamic"] == ["version"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"file": "VERSION"}
    assert version("skiff") == (ROOT / "VERSION").read_text().strip()


def test_ci_runs_lint_and_tests() -> None:
    script = (ROOT / ".ci/run").read_text()
    assert os.access(ROOT / ".ci/run", os.X_OK)
    assert "make lint" in script
    assert script.rstrip().endswith("make test")  # pytest's summary comes last


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
def test_make_goes_on_with_the_platform_that_is_installed(tmp_path: Path, platform: str) -> None:
    """So that `make test` in a clone for GPUs does not install the other lock over it."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "VERSION", tmp_path)
    if platform != "cpu":  # the default
        (tmp_path / ".venv").mkdir()
        (tmp_path / ".venv" / "skiff-platform").write_text(f"{platform}\n")
    result = run("make", "--dry-run", "--directory", str(tmp_path), "install")
    assert f"tools/install {platform}\n" in result.stdout
