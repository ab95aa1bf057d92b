"""The command that starts an entry point inside its image. tests/sif runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.images.runnable import runnable
from skiff.launch.containers import (
    Program,
    runtime_binds,
    sif_program,
    trainer_binds,
    trainer_variables,
)


def test_paths_are_bound_to_themselves_and_secrets_stay_off_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    monkeypatch.setenv("LD_PRELOAD", "of the host")
    run_dir, scratch = tmp_path / "run", tmp_path / "scratch"
    run_dir.mkdir()
    scratch.mkdir()
    program = sif_program(
        Path("/images/a.sif"),
        ["--config", "c"],
        binds=[run_dir, tmp_path / "absent"],
        scratch=scratch,
        variables=trainer_variables(),
    )
    assert program.command[-3:] == ["/images/a.sif", "--config", "c"]
    assert f"--bind={scratch}:/tmp" in program.command
    assert f"--bind={run_dir}:{run_dir}" in program.command
    assert not any("absent" in word or "planted" in word for word in program.command)
    assert program.environment["APPTAINERENV_WANDB_API_KEY"] == "planted"
    assert "LD_PRELOAD" not in program.environment


def test_a_gpu_is_given_to_who_needs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")

    def program(*, gpus: bool) -> Program:
        variables = trainer_variables()
        return sif_program(
            Path("/a.sif"), [], binds=[], scratch=tmp_path, variables=variables, gpus=gpus
        )

    assert "--nv" in program(gpus=True).command
    assert f"--bind={tmp_path / 'kernels'}:/opt/skiff/kernels" in program(gpus=True).command
    assert list((tmp_path / "kernels").iterdir()) == []
    assert "--nv" not in program(gpus=False).command
    environment = program(gpus=True).environment
    assert environment["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "MIG-1,MIG-2"


def test_the_folder_of_packs_is_bound(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = runtime_config(kernels={"packs": str(tmp_path / "packs")})
    assert tmp_path / "packs" in trainer_binds(config, tmp_path / "run")


def test_further_folders_are_bound_into_both(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = runtime_config(images={"binds": [str(tmp_path / "data")]})
    assert tmp_path / "data" in trainer_binds(config, tmp_path / "run")
    assert tmp_path / "data" in runtime_binds(config, tmp_path / "run")


def test_a_place_below_tmp_exists_in_what_is_bound_to_tmp(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inside = Path("/tmp") / tmp_path.relative_to("/tmp")
    sif_program(Path("/a.sif"), [], binds=[inside], scratch=scratch, variables={})
    assert (scratch / tmp_path.relative_to("/tmp")).is_dir()


def test_the_trainer_sees_the_files_that_the_profile_names(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = runtime_config()
    tasks = config.tasks.model_copy(update={"train": (f"tasks:{tmp_path / 'data' / 'a.jsonl'}",)})
    changed = config.model_copy(update={"tasks": tasks})
    binds = trainer_binds(changed, tmp_path / "run")
    assert tmp_path / "data" in binds
    assert tmp_path / "run" in binds


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        runnable(tmp_path / "none.sif")
    assert "make build-sif" in caught.value.remedy
