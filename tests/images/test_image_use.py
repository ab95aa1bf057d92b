"""Names of images and of files, and the marks of their use."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from skiff.image_use import file_name, forget, full_name, image_name, last_used, mark_used, sif_path

COMPONENT = st.from_regex(r"[a-z0-9]{1,4}((\.|_|__|-{1,2})[a-z0-9]{1,4}){0,2}", fullmatch=True)
TAG = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,8}", fullmatch=True)
DIGEST = st.from_regex(r"sha256:[0-9a-f]{64}", fullmatch=True)
REFERENCES = st.builds(
    lambda parts, tag, digest: (
        "/".join(parts) + (f":{tag}" if tag else "") + (f"@{digest}" if digest else "")
    ),
    st.lists(COMPONENT, min_size=1, max_size=4),
    st.none() | TAG,
    st.none() | DIGEST,
)


@given(REFERENCES | st.text(st.characters(codec="ascii", exclude_characters="\0"), min_size=1))
@example("a/b__c")
@example("a/_b_/_")
@example("a//b")
@example("%2E/%5F")
@example(".")
@example("..")
def test_file_names_are_reversible(name: str) -> None:
    file = file_name(name)
    assert "/" not in file
    assert not file.startswith(".")
    assert image_name(file) == name


@given(REFERENCES, REFERENCES)
def test_two_images_have_two_files(one: str, other: str) -> None:
    assert (file_name(one) == file_name(other)) == (one == other)


def test_slashes_are_two_underscores() -> None:
    assert file_name("docker.io/library/debian:12") == "docker.io__library__debian:12"
    assert file_name("a/b_c.d") == "a__b_c.d"


@given(REFERENCES)
def test_a_full_name_is_complete(name: str) -> None:
    full = full_name(name)
    assert full_name(full) == full
    assert "/" in full
    assert ":" in full.rpartition("/")[2]


@pytest.mark.parametrize(
    ("name", "full"),
    [
        ("debian", "docker.io/library/debian:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("user/image", "docker.io/user/image:latest"),
        ("docker.io/debian", "docker.io/library/debian:latest"),
        ("host:5000/image", "host:5000/image:latest"),
        ("ghcr.io/user/image:1", "ghcr.io/user/image:1"),
        ("localhost/image", "localhost/image:latest"),
        ("user/image:1@sha256:abc", "docker.io/user/image@sha256:abc"),
    ],
)
def test_names_are_completed_as_engines_do(name: str, full: str) -> None:
    assert full_name(name) == full


def test_a_mark_lasts_until_it_is_forgotten(tmp_path: Path) -> None:
    assert last_used(tmp_path, "debian") == 0
    mark_used(tmp_path, "debian")
    (mark,) = (tmp_path / "last-use").iterdir()
    os.utime(mark, (100, 100))
    assert last_used(tmp_path, "docker.io/library/debian:latest") == 100
    mark_used(tmp_path, "docker.io/debian:latest")
    assert last_used(tmp_path, "debian") > 100
    forget(tmp_path, "debian")
    forget(tmp_path, "debian")
    assert last_used(tmp_path, "debian") == 0


def test_the_sif_of_an_image(tmp_path: Path) -> None:
    assert sif_path(tmp_path, "a/b:1") == tmp_path / "docker.io__a__b:1.sif"
