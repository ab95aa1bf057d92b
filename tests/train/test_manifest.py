"""A checkpoint that is not as it was saved is told from one that is."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.train.manifest import NAME, fault, write_manifest


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "global_step_4"
    (folder / "actor" / "huggingface").mkdir(parents=True)
    (folder / "actor" / "model.pt").write_bytes(bytes(range(256)) * 64)
    (folder / "actor" / "huggingface" / "config.json").write_text("{}")
    (folder / "data.pt").write_bytes(b"position")
    return folder


def test_a_checkpoint_is_as_its_manifest_says(checkpoint: Path) -> None:
    assert fault(checkpoint) == "it was not saved to its end"
    manifest = write_manifest(checkpoint)
    assert fault(checkpoint) == ""
    assert set(manifest.files) == {
        "actor/model.pt",
        "actor/huggingface/config.json",
        "data.pt",
    }
    assert manifest.size == 64 * 256 + 2 + 8
    assert write_manifest(checkpoint) == manifest  # it does not list itself


def shorten(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[1000] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("damage", "wrong"),
    [
        (Path.unlink, "actor/model.pt is missing"),
        (shorten, "actor/model.pt has 16383 bytes instead of 16384"),
        (flip, "actor/model.pt has another SHA-256 than when it was saved"),
    ],
)
def test_damage_is_named(checkpoint: Path, damage: Callable[[Path], None], wrong: str) -> None:
    write_manifest(checkpoint)
    damage(checkpoint / "actor" / "model.pt")
    assert fault(checkpoint) == wrong


@pytest.mark.parametrize("text", ["", "4\n", "[]", '{"files": {"a": {"size": -1, "sha256": ""}}}'])
def test_a_broken_manifest_is_none(checkpoint: Path, text: str) -> None:
    (checkpoint / NAME).write_text(text)
    assert fault(checkpoint) == "its manifest is no manifest"


def test_the_manifest_can_be_checked_by_other_programs(checkpoint: Path) -> None:
    write_manifest(checkpoint)
    found = json.loads((checkpoint / NAME).read_text())
    assert found["files"]["data.pt"] == {
        "size": 8,
        "sha256": "5a452459503be70d2ed2fca46dd91e05e820a957f175686a77d03fff80f664fe",
    }
