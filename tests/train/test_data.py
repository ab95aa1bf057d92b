"""Tasks become the files that verl and the agent loop read; a bad choice is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from skiff.binds import BOUND
from skiff.config import Config
from skiff.errors import ConfigError, TaskError
from skiff.tasks.task import ScriptGrade, Task
from skiff.train.data import TASKS, read_tasks, select, write_data
from skiff.train.inputs import check_inputs, check_places, model_folder

Configured = Callable[..., Config]


def write_tasks(path: Path, count: int) -> str:
    tasks = [
        Task(
            id=f"test:{number}",
            source="test",
            image="none",
            prompt=f"Task\n{number} é",
            grade=ScriptGrade(script="true"),
        )
        for number in range(count)
    ]
    path.write_text("".join(task.model_dump_json() + "\n" for task in tasks))
    return f"tasks:{path}"


def test_the_rows_name_the_tasks(runtime_config: Configured, tmp_path: Path) -> None:
    spec = write_tasks(tmp_path / "tasks.jsonl", 10)
    splits = write_data(
        runtime_config(tasks={"train": [spec], "validation": []}), tmp_path / "data"
    )
    assert [task.id for task in splits["validation"]] == ["test:0", "test:5"]
    assert len(splits["train"]) == 8
    tasks = read_tasks(tmp_path / "data" / TASKS)
    assert len(tasks) == 10
    for split, expected in splits.items():
        rows = pq.read_table(tmp_path / "data" / f"{split}.parquet").to_pylist()
        assert [tasks[row["extra_info"]["task"]] for row in rows] == expected
        assert {row["extra_info"]["split"] for row in rows} == {split}
        assert [row["extra_info"]["index"] for row in rows] == list(range(len(rows)))
        assert [row["prompt"][0]["content"] for row in rows] == [t.prompt for t in expected]
        assert {row["data_source"] for row in rows} == {"test"}


def test_limits_and_skip_list_hold(runtime_config: Configured, tmp_path: Path) -> None:
    (tmp_path / "skip").write_text("test:1 gold patch fails\n")
    config = runtime_config(
        tasks={
            "train": [write_tasks(tmp_path / "tasks.jsonl", 10)],
            "validation": ["shell:validation"],
            "train_limit": 3,
            "validation_limit": 2,
            "skip_list": str(tmp_path / "skip"),
        }
    )
    splits = select(config)
    assert [task.id for task in splits["train"]] == ["test:0", "test:2", "test:3"]
    assert len(splits["validation"]) == 2


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        (
            {"train": ["shell:train"], "validation": ["shell:train"]},
            "tasks.validation: holds 1024 tasks of tasks.train",
        ),
        (
            {"train": [], "validation": ["shell:validation"]},
            "tasks.train = []: resolves to no task",
        ),
        (
            {"train": ["shell:train"] * 2, "validation": ["shell:validation"]},
            "tasks.train: holds 1024 tasks twice",
        ),
        (
            {"train": ["shell:train"], "validation": ["shell:validation"], "train_limit": 3},
            "tasks.train: holds 3 tasks, fewer than rollout.prompts_per_step (4)",
        ),
    ],
)
def test_a_bad_choice_is_refused_and_nothing_written(
    runtime_config: Configured, tmp_path: Path, tasks: dict[str, Any], words: str
) -> None:
    config = runtime_config(tasks=tasks, rollout={"prompts_per_step": 4})
    with pytest.raises(ConfigError) as caught:
        write_data(config, tmp_path / "data")
    assert words in str(caught.value)
    assert caught.value.remedy
    assert not (tmp_path / "data").exists()


def test_the_task_file_comes_last(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A start that was killed in between must not leave a run that lacks its parquet files.
    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(OSError, match="No space"):
        write_data(runtime_config(), tmp_path / "data")
    assert not (tmp_path / "data" / TASKS).exists()


def test_a_model_that_cannot_be_looked_into_is_named(runtime_config: Configured) -> None:
    with pytest.raises(ConfigError, match="cannot be looked into: File name too long"):
        model_folder(runtime_config(model={"path": "a" * 300}))


def test_inside_an_image_model_and_tasks_are_read_where_they_are_bound(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.json").touch()
    write_tasks(tmp_path / "tasks.jsonl", 10)
    (tmp_path / "skip").write_text("test:1\n")
    inside = {"/home/a/model": ".", "/home/a/t.jsonl": "tasks.jsonl", "/home/a/skip": "skip"}
    moved = {own: str(tmp_path / name) for own, name in inside.items()}
    monkeypatch.setenv(BOUND, json.dumps(moved))
    config = runtime_config(
        model={"path": "/home/a/model"},
        tasks={"train": ["tasks:/home/a/t.jsonl"], "skip_list": "/home/a/skip"},
    )
    assert model_folder(config) == tmp_path
    assert "test:1" not in [task.id for tasks in select(config).values() for task in tasks]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("", "is no Hugging Face model folder"),
        ("config.json", ""),
    ],
)
def test_a_model_is_a_folder_with_a_config(
    runtime_config: Configured, tmp_path: Path, where: str, words: str
) -> None:
    config = runtime_config(model={"path": str(tmp_path)})
    if where:
        (tmp_path / where).touch()
        assert model_folder(config) == tmp_path
        check_inputs(config)
    else:
        with pytest.raises(ConfigError, match=words) as caught:
            check_inputs(config)
        assert f"model.path = {tmp_path}" in str(caught.value)


def test_a_warm_start_needs_no_model(runtime_config: Configured) -> None:
    check_inputs(runtime_config(model={"path": "warm-start"}, warm_start={}))


def test_unknown_tasks_are_an_input_fault(runtime_config: Configured) -> None:
    config = runtime_config(
        model={"path": "warm-start"}, warm_start={}, tasks={"train": ["shell:trian"]}
    )
    with pytest.raises(TaskError, match="did you mean 'train'"):
        check_inputs(config)


def test_a_foreign_server_needs_its_key_file(
    runtime_config: Configured, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runtime_config(
        model={"path": "warm-start"}, warm_start={}, runtime={"url": "http://elsewhere:1"}
    )
    monkeypatch.delenv("SKIFF_RUNTIME_KEY_FILE", raising=False)
    with pytest.raises(ConfigError, match=r"runtime\.url: is set, but .* SKIFF_RUNTIME_KEY_FILE"):
        check_places(config)
    monkeypatch.setenv("SKIFF_RUNTIME_KEY_FILE", "key")
    check_places(config)
