"""Our diffs against the program that will read them: git apply."""

import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from skiff.tasks.diffs import file_diff, touched_paths

LINE = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=6)
TEXT = st.lists(LINE, max_size=8).map("\n".join)


def apply(patch: str, folder: Path) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        ["git", "apply", "--whitespace=nowarn"],
        cwd=folder,
        input=patch.encode(),
        capture_output=True,
        env={"PATH": "/usr/bin:/bin", "GIT_CEILING_DIRECTORIES": str(folder.parent)},
    )


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(old=TEXT, new=TEXT)
def test_git_makes_new_of_old(tmp_path: Path, old: str, new: str) -> None:
    file = tmp_path / "a file.txt"
    file.write_bytes(old.encode())
    patch = file_diff("a file.txt", old, new)
    if old == new:
        assert patch == ""
        return
    done = apply(patch, tmp_path)
    assert done.returncode == 0, done.stderr
    assert file.read_bytes() == new.encode()


@pytest.mark.parametrize("text", ["", "one\n", "no newline"])
def test_files_come_and_go(tmp_path: Path, text: str) -> None:
    assert apply(file_diff("new.sh", None, text, mode=0o755), tmp_path).returncode == 0
    assert (tmp_path / "new.sh").read_text() == text
    assert (tmp_path / "new.sh").stat().st_mode & 0o111
    assert apply(file_diff("new.sh", text, None, mode=0o755), tmp_path).returncode == 0
    assert not (tmp_path / "new.sh").exists()


def test_touched_paths() -> None:
    patch = (
        file_diff("a/b.py", "1\n", "2\n")
        + file_diff("new.py", None, "1\n")
        + file_diff("old.py", "1\n", None)
    )
    assert touched_paths(patch.encode()) == ["a/b.py", "new.py", "old.py"]
