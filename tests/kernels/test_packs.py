"""`skiff kernels` over a folder of packs."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from skiff import cli
from skiff.kernels.ladder import Rung, choose
from skiff.kernels.manifest import Facts
from skiff.kernels.packs import keep, read_packs, verify
from skiff.kernels.tree import place

from .conftest import Pack

Captured = pytest.CaptureFixture[str]


def test_list_shows_the_newest_first(
    facts: Facts, pack: Pack, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    pack(facts, name="old", made=1)
    pack(facts, name="new", made=2)
    assert cli.main(["kernels", "list", str(tmp_path / "packs")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"new.*NVIDIA H200.*/models/qwen3-8b.*0\.24\.0.*\bold\b", told, re.DOTALL)


def test_list_of_no_folder_is_an_error(tmp_path: Path, capsys: Captured) -> None:
    assert cli.main(["kernels", "list", str(tmp_path / "none")]) == 2
    assert "is no folder" in " ".join(capsys.readouterr().err.split())


def test_explain_names_the_fields(facts: Facts, pack: Pack, capsys: Captured) -> None:
    change = {"engine": facts.engine | {"max_num_seqs": 32}, "device": "NVIDIA H100 80GB HBM3"}
    one, other = pack(facts), pack(facts.model_copy(update=change), name="q")
    assert cli.main(["kernels", "explain", str(one.path), str(other.path)]) == 1
    assert capsys.readouterr().out.splitlines() == [
        "device is 'NVIDIA H200' there and 'NVIDIA H100 80GB HBM3' here",
        "engine.max_num_seqs is 64 there and 32 here",
        "2 differences",
    ]


def test_explain_of_the_same_keys(facts: Facts, pack: Pack, capsys: Captured) -> None:
    one, other = pack(facts, made=1), pack(facts, name="q", made=2)
    assert cli.main(["kernels", "explain", str(one.path), str(other.path)]) == 0
    assert capsys.readouterr().out == "the same keys\n"


def test_verify_finds_the_damaged_file(facts: Facts, pack: Pack, capsys: Captured) -> None:
    whole, damaged = pack(facts), pack(facts, name="q")
    (damaged.tree / "triton/KEY/kernel.cubin").write_bytes(b"x")
    assert cli.main(["kernels", "verify", str(whole.path)]) == 0
    assert capsys.readouterr().out == f"{whole.path}: whole\n"
    assert cli.main(["kernels", "verify", str(whole.path), str(damaged.path)]) == 1
    assert f"{damaged.path}: triton/KEY/kernel.cubin is damaged\n" in capsys.readouterr().out


def test_verify_finds_a_link(facts: Facts, pack: Pack, capsys: Captured) -> None:
    made = pack(facts)
    kernel = made.tree / "triton/KEY/kernel.cubin"
    kernel.rename(made.path / "kernel.cubin")
    kernel.symlink_to(made.path / "kernel.cubin")
    assert cli.main(["kernels", "verify", str(made.path)]) == 3
    assert "is a link" in " ".join(capsys.readouterr().err.split())


def test_a_filled_root_is_kept_as_a_pack(facts: Facts, tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "packs"
    (root / "triton").mkdir(parents=True)
    (root / "triton/kernel.cubin").write_bytes(b"code")
    folder.mkdir()
    kept = keep(root, folder / "h200", facts, driver="580.65.06")
    (found,) = read_packs(folder)
    assert found == kept
    assert (found.manifest.facts, found.manifest.driver) == (facts, "580.65.06")
    assert verify(found) == []
    assert sorted(path.name for path in found.path.iterdir()) == ["manifest.json", "tree.squashfs"]
    again = tmp_path / "again"
    again.mkdir()
    place(found.tree, again)
    assert (again / "triton/kernel.cubin").read_bytes() == b"code"
    assert [path.name for path in folder.iterdir()] == ["h200"]
    with pytest.raises(FileExistsError):
        keep(root, folder / "h200", facts)


def test_a_damaged_squashfs_is_found_and_not_used(facts: Facts, tmp_path: Path) -> None:
    root, folder = tmp_path / "root", tmp_path / "packs"
    root.mkdir()
    (root / "kernel.cubin").write_bytes(b"code")
    folder.mkdir()
    kept = keep(root, folder / "h200", facts)
    assert choose([kept], None, facts, missing=[]).rung is Rung.PACK
    with kept.tree.open("r+b") as file:
        file.seek(100)
        file.write(b"x")
    assert verify(kept) == ["tree.squashfs is damaged"]
    choice = choose([kept], None, facts, missing=[])
    assert choice.rung is Rung.COMPILE
    assert "pack h200: tree.squashfs is damaged" in choice.line


def test_prune_removes_only_the_old(
    facts: Facts, pack: Pack, tmp_path: Path, capsys: Captured
) -> None:
    folder = tmp_path / "packs"
    pack(facts, name="old", made=time.time() - 8 * 86400)
    pack(facts, name="new", made=time.time() - 6 * 86400)
    arguments = ["kernels", "prune", str(folder), "--older-than", "7d"]
    assert cli.main([*arguments, "--dry-run"]) == 0
    assert len(read_packs(folder)) == 2
    assert cli.main(arguments) == 0
    assert [one.path.name for one in read_packs(folder)] == ["new"]
    assert not (folder / "old").exists()
    assert capsys.readouterr().out.endswith("removed: old\n1 packs removed\n")
