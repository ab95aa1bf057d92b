"""`skiff kernels build` and `verify --strict`; a script stands for the trainer and its GPU."""

from __future__ import annotations

from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from skiff.config import Config
from skiff.errors import ConfigError, InfraError
from skiff.kernels.packs import read_packs
from skiff.launch import kernels, run_folder
from skiff.launch.kernels import build, prove

Configured = Callable[..., Config]
TRAINER = """#!/usr/bin/env python3
import argparse, json, sys
from pathlib import Path
from skiff.kernels.manifest import Facts
from skiff.kernels.packs import keep, read_pack
parser = argparse.ArgumentParser()
for name in ("config", "rendezvous", "attempt", "kernels"):
    parser.add_argument("--" + name)
given = parser.parse_args()
run = Path(given.config).parent
if given.kernels == "bake":
    root = run / "root"
    root.mkdir()
    (root / "kernel.cubin").write_bytes(b"code")
    facts = Facts(versions={}, platform="p", root="/r", device="NVIDIA H200")
    keep(root, run / "pack", facts, profile=run / "config.toml")
elif (run.parent / "lacking").exists():
    sys.exit("error: kernels of pack: Triton compiled _ranks for 90")
else:
    read_pack(run / "pack")
"""


@pytest.fixture
def trainer(tmp_path: Path) -> Path:
    folder = tmp_path / "entrypoints"
    folder.mkdir()
    (folder / "train").write_text(TRAINER)
    return folder


@pytest.fixture
def config(runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.setattr(kernels, "check_inputs", lambda config: None)  # there is no model
    return runtime_config(
        run={"name": "big", "folder": str(tmp_path / "runs")},
        hardware={"platform": "cuda"},
        kernels={"packs": str(tmp_path / "packs")},
        train={"steps": 500, "save_every": 5},
    )


def test_a_pack_is_made_and_proved_before_it_is_there(
    config: Config, trainer: Path, tmp_path: Path
) -> None:
    told = StringIO()
    pack = build(config, Console(file=told), entrypoints=trainer)
    (found,) = read_packs(tmp_path / "packs")
    assert found.path == pack
    assert pack.name.startswith("none-nvidia-h200-")
    assert [line.split(":")[0] for line in told.getvalue().splitlines()][-2:] == ["bake", "proof"]
    (run,) = (tmp_path / "runs").iterdir()
    short = run_folder.read_config(run)
    assert (short.train.steps, short.train.save_every, short.train.export) == (2, 0, False)
    assert short.hardware == config.hardware
    assert (pack / "profile.toml").read_text() == (run / "config.toml").read_text()


def test_a_pack_that_lacks_a_kernel_is_not_published(
    config: Config, trainer: Path, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "lacking").touch()
    with pytest.raises(InfraError, match=r"kernels proof: .*Triton compiled _ranks for 90"):
        build(config, Console(file=StringIO()), entrypoints=trainer)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_second_pack_of_the_same_facts_is_refused(config: Config, trainer: Path) -> None:
    build(config, Console(file=StringIO()), entrypoints=trainer)
    again = config.model_copy(update={"run": config.run.model_copy(update={"name": "again"})})
    with pytest.raises(InfraError, match="exists already"):
        build(again, Console(file=StringIO()), entrypoints=trainer)


def test_a_pack_is_proved_again_by_the_profile_in_it(
    config: Config, trainer: Path, tmp_path: Path
) -> None:
    pack = build(config, Console(file=StringIO()), entrypoints=trainer)
    prove(pack, Console(file=StringIO()), entrypoints=trainer)
    (pack / "profile.toml").unlink()
    with pytest.raises(ConfigError, match=r"has no profile\.toml"):
        prove(pack, Console(file=StringIO()), entrypoints=trainer)


def test_a_proof_that_fails_says_what_was_compiled(
    config: Config, trainer: Path, tmp_path: Path
) -> None:
    pack = build(config, Console(file=StringIO()), entrypoints=trainer)
    (tmp_path / "runs" / "lacking").touch()
    with pytest.raises(InfraError, match="Triton compiled"):
        prove(pack, Console(file=StringIO()), entrypoints=trainer)


def test_without_a_folder_for_packs_nothing_starts(
    runtime_config: Configured, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"kernels\.packs: is not set"):
        build(runtime_config(), Console(file=StringIO()), entrypoints=tmp_path)
