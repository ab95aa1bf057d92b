"""The command that starts an entry point inside its image. tests/sif runs it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from skiff.binds import BOUND, bound
from skiff.config import Config
from skiff.errors import ConfigError
from skiff.images.runnable import runnable
from skiff.launch.containers import (
    Bind,
    Program,
    at_own_path,
    runtime_binds,
    sif_program,
    trainer_binds,
    trainer_variables,
)


def options(binds: list[Bind]) -> list[str]:
    return [bind.option for bind in binds]


def test_what_is_bound_and_that_secrets_stay_off_the_command_line(
    runtime_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted")
    monkeypatch.setenv("LD_PRELOAD", "of the host")
    run_dir, scratch = tmp_path / "run", tmp_path / "scratch"
    run_dir.mkdir()
    scratch.mkdir()
    program = sif_program(
        Path("/images/a.sif"),
        ["--config", "c"],
        binds=[at_own_path(run_dir), at_own_path(tmp_path / "absent")],
        scratch=scratch,
        variables=trainer_variables(runtime_config()),
    )
    assert program.command[-3:] == ["/images/a.sif", "--config", "c"]
    assert f"--bind={scratch}:/tmp" in program.command
    assert f"--bind={run_dir}:{run_dir}" in program.command
    assert not any("absent" in word or "planted" in word for word in program.command)
    assert program.environment["APPTAINERENV_WANDB_API_KEY"] == "planted"
    assert "LD_PRELOAD" not in program.environment


def test_a_gpu_is_given_to_who_needs_it(
    runtime_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1,MIG-2")

    def program(*, gpus: bool) -> Program:
        variables = trainer_variables(runtime_config())
        return sif_program(
            Path("/a.sif"), [], binds=[], scratch=tmp_path, variables=variables, gpus=gpus
        )

    assert "--nv" in program(gpus=True).command
    assert f"--bind={tmp_path / 'kernels'}:/opt/skiff/kernels" in program(gpus=True).command
    assert list((tmp_path / "kernels").iterdir()) == []
    assert "--nv" not in program(gpus=False).command
    environment = program(gpus=True).environment
    assert environment["APPTAINERENV_CUDA_VISIBLE_DEVICES"] == "MIG-1,MIG-2"


def test_the_run_folder_and_packs_have_constant_paths_and_their_own(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> None:
    run_dir, packs = tmp_path / "run", tmp_path / "packs"
    config = runtime_config(kernels={"packs": str(packs)})
    for binds in (trainer_binds(config, run_dir), runtime_binds(config, run_dir)):
        assert f"--bind={run_dir}:/skiff/run" in options(binds)
        assert f"--bind={run_dir}:{run_dir}" in options(binds)
    assert f"--bind={packs}:/skiff/packs" in options(trainer_binds(config, run_dir))
    assert f"--bind={packs}:{packs}" in options(trainer_binds(config, run_dir))


def test_further_folders_are_bound_into_both(
    runtime_config: Callable[..., Config], tmp_path: Path
) -> None:
    config = runtime_config(images={"binds": [str(tmp_path / "data")]})
    assert at_own_path(tmp_path / "data") in trainer_binds(config, tmp_path / "run")
    assert at_own_path(tmp_path / "data") in runtime_binds(config, tmp_path / "run")


def test_a_place_below_tmp_exists_in_what_is_bound_to_tmp(tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    inside = Path("/tmp") / tmp_path.relative_to("/tmp")
    sif_program(Path("/a.sif"), [], binds=[at_own_path(inside)], scratch=scratch, variables={})
    assert (scratch / tmp_path.relative_to("/tmp")).is_dir()


def test_model_and_tasks_are_at_constant_paths_and_found_there(
    runtime_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, tasks, skip = tmp_path / "model", tmp_path / "data" / "a.jsonl", tmp_path / "skip"
    model.mkdir()
    tasks.parent.mkdir()
    for file in (model / "config.json", tasks, skip):
        file.touch()
    config = runtime_config(
        model={"path": str(model)},
        tasks={
            "train": [f"tasks:{tasks}", "shell:train"],
            "validation": [f"tasks:{tmp_path / 'gone'}", f"tasks:{tasks}"],
            "skip_list": str(skip),
        },
    )
    binds = options(trainer_binds(config, tmp_path / "run"))
    assert f"--bind={model}:/skiff/model:ro" in binds
    assert f"--bind={tasks}:/skiff/data/0/a.jsonl:ro" in binds
    assert f"--bind={skip}:/skiff/data/2/skip:ro" in binds
    assert not any("gone" in option for option in binds)

    monkeypatch.setenv(BOUND, trainer_variables(config)[BOUND])
    assert bound(model) == Path("/skiff/model")
    assert bound(tasks) == Path("/skiff/data/0/a.jsonl")
    assert bound(skip) == Path("/skiff/data/2/skip")
    assert bound(tmp_path / "gone") == tmp_path / "gone"
    monkeypatch.delenv(BOUND)
    assert bound(model) == model


def test_links_are_resolved(runtime_config: Callable[..., Config], tmp_path: Path) -> None:
    def model_binds(folder: Path) -> list[str]:
        config = runtime_config(model={"path": str(folder)})
        found = options(trainer_binds(config, tmp_path / "run"))
        return [option for option in found if ":/skiff/model" in option]

    plain = tmp_path / "plain"
    plain.mkdir()
    (plain / "config.json").touch()
    (plain / "same.json").symlink_to("config.json")
    (tmp_path / "link").symlink_to(plain)
    assert model_binds(tmp_path / "link") == [f"--bind={plain}:/skiff/model:ro"]

    # As a hub's cache has it: a relative link that leads nowhere from /skiff/model.
    (tmp_path / "blob").touch()
    (plain / "weights").symlink_to("../blob")
    assert sorted(model_binds(plain)) == [
        f"--bind={tmp_path / 'blob'}:/skiff/model/weights:ro",
        f"--bind={plain / 'config.json'}:/skiff/model/config.json:ro",
        f"--bind={plain / 'config.json'}:/skiff/model/same.json:ro",
    ]
    (plain / "weights").unlink()
    (plain / "weights").symlink_to(plain / "config.json")  # absolute: of a path that is not inside
    assert f"--bind={plain / 'config.json'}:/skiff/model/weights:ro" in model_binds(plain)


def test_an_image_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read") as caught:
        runnable(tmp_path / "none.sif")
    assert "make build-sif" in caught.value.remedy
