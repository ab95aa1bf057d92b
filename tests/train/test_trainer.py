"""The trainer half without verl: its executable is replaced by a small script."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import events
from skiff.config import Config
from skiff.config.load import write_config
from skiff.errors import ConfigError, InfraError
from skiff.sandbox.client import FOLDER_VARIABLE, KEY_FILE_VARIABLE, URL_VARIABLE
from skiff.train import trainer, warm_start
from skiff.train.kernels import Kernels, Use
from skiff.train.manifest import write_manifest
from skiff.train.resume import complete_steps
from skiff.train.retry import TransientError
from skiff.train.save_request import SAVED, request_file
from skiff.train.trainer import (
    Start,
    export,
    find_runtime,
    phase,
    resolve_model,
    run_verl,
    train,
)

Configured = Callable[..., Config]
SECRET = "hunter2-hunter2"
NO_KERNELS = Kernels(Use.LADDER, Path("/nonexistent"))

# Stands for the Python interpreter that runs verl: tells what it was given, then does `then`.
PROGRAM = """#!{python}
import json, os, stat, sys
token = os.environ["RAY_AUTH_TOKEN_PATH"]
seen = {{
    "argv": sys.argv[1:],
    "env": dict(os.environ),
    "token": [len(open(token).read()), stat.S_IMODE(os.stat(token).st_mode), token],
}}
json.dump(seen, open({seen!r}, "w"))
metrics = open(os.environ["VERL_FILE_LOGGER_PATH"], "w")
{then}
"""
STEP = 'metrics.write(json.dumps({"step": 1, "data": {"timing_s/step": 2.0}}) + "\\n")'


@pytest.fixture(autouse=True)
def clean_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    # Set first, so that what the trainer sets is taken back after the test.
    for name in (URL_VARIABLE, KEY_FILE_VARIABLE):
        monkeypatch.setenv(name, "stale")
        monkeypatch.delenv(name)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    for name in ("logs", "attempts/01", "ckpt", "data"):
        (tmp_path / name).mkdir(parents=True)
    return tmp_path


@pytest.fixture
def verl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Callable[[], Any]]:
    """`verl(then)`: the fake; returns a function that reads what it has seen."""

    def make(then: str = STEP) -> Callable[[], Any]:
        seen = tmp_path / "seen.json"
        program = tmp_path / "python"
        program.write_text(PROGRAM.format(python=sys.executable, seen=str(seen), then=then))
        program.chmod(0o755)
        monkeypatch.setattr(trainer.sys, "executable", str(program))
        return lambda: json.loads(seen.read_text())

    return make


def publish(run_dir: Path) -> Path:
    rendezvous = run_dir / "runtime.json"
    rendezvous.write_text(json.dumps({"url": "http://here:1", "key_file": "/keys/run"}))
    return rendezvous


def test_the_server_is_found_by_its_file(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(URL_VARIABLE, "http://of-another-run:1")  # must not win
    monkeypatch.setenv(KEY_FILE_VARIABLE, "/keys/other")
    config = runtime_config(model={"path": "warm-start"}, warm_start={})
    find_runtime(config, publish(tmp_path))
    assert os.environ[URL_VARIABLE] == "http://here:1"
    assert os.environ[KEY_FILE_VARIABLE] == "/keys/run"


def test_several_servers_are_found_by_their_folder(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(FOLDER_VARIABLE, "/of/another/run")
    monkeypatch.setenv(KEY_FILE_VARIABLE, "/keys/other")
    monkeypatch.setattr(trainer, "RENDEZVOUS_SECONDS", 0.1)
    config = runtime_config(model={"path": "warm-start"}, warm_start={})
    with pytest.raises(InfraError, match="no runtime server appeared"):
        find_runtime(config, tmp_path)
    assert FOLDER_VARIABLE not in os.environ
    publish(tmp_path).rename(tmp_path / "runtime-node7.json")
    find_runtime(config, tmp_path)
    assert os.environ[FOLDER_VARIABLE] == str(tmp_path)
    assert os.environ[KEY_FILE_VARIABLE] == "/keys/run"


def test_no_server_is_an_error_at_the_deadline(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "RENDEZVOUS_SECONDS", 0.1)
    config = runtime_config(model={"path": "warm-start"}, warm_start={})
    with pytest.raises(InfraError, match=r"runtime\.json: no runtime server appeared within 0\.1"):
        find_runtime(config, tmp_path / "runtime.json")


def test_a_named_server_needs_no_file(
    runtime_config: Configured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(KEY_FILE_VARIABLE, "/keys/mine")
    config = runtime_config(
        model={"path": "warm-start"}, warm_start={}, runtime={"url": "http://there:2"}
    )
    find_runtime(config, tmp_path / "absent.json")
    assert os.environ[URL_VARIABLE] == "http://there:2"
    assert os.environ[KEY_FILE_VARIABLE] == "/keys/mine"


def test_a_model_folder_is_taken_by_its_absolute_path(
    runtime_config: Configured, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(Path(tiny_model).parent)
    config = runtime_config(model={"path": Path(tiny_model).name})
    assert resolve_model(config, tmp_path) == tiny_model
    with pytest.raises(ConfigError, match="is no Hugging Face model folder"):
        resolve_model(runtime_config(), tmp_path)


def test_a_warm_start_is_made_once_and_whole(
    runtime_config: Configured, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = runtime_config(model={"path": "warm-start"}, warm_start={})
    (run_dir / "key").write_text("key")
    (run_dir / "key").chmod(0o600)
    monkeypatch.setenv(URL_VARIABLE, "http://here:1")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(run_dir / "key"))
    outcome: list[Exception | None] = [InfraError("no sandbox"), None]

    def make(config: Config, client: Any, folder: Path, progress: Any) -> None:
        (folder / "config.json").write_text("{}")
        error = outcome.pop(0)
        if error is not None:
            raise error
        progress("done", 1.0)

    monkeypatch.setattr(warm_start, "warm_start", make)
    with pytest.raises(InfraError, match="no sandbox"):
        resolve_model(config, run_dir)
    assert not (run_dir / "model" / "warm-start").exists()
    made = resolve_model(config, run_dir)
    assert (Path(made) / "config.json").is_file()
    assert resolve_model(config, run_dir) == made  # the list is empty: not made again
    assert [event["share"] for event in events.read(run_dir, "progress")] == [1.0]
    assert len(list(events.read(run_dir, "phase"))) == 1
    assert {path.name for path in run_dir.iterdir() if path.name.startswith("tmp")} == set()


def test_verl_gets_its_overrides_and_a_clean_environment(
    runtime_config: Configured,
    run_dir: Path,
    verl: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("UV_PROJECT_ENVIRONMENT", "/elsewhere")
    monkeypatch.setenv("RAY_ADDRESS", "elsewhere:1")
    seen = verl()
    secrets = {"WANDB_API_KEY": SECRET}
    run_verl(runtime_config(), run_dir, "/models/tiny", secrets, Start(1, 1, 0), NO_KERNELS)
    found = seen()
    assert found["argv"][:2] == ["-m", "verl.trainer.main_ppo"]
    assert "trainer.val_before_train=false" not in found["argv"]
    assert found["argv"][2:] == (run_dir / "attempts/01/verl.txt").read_text().splitlines()
    env = found["env"]
    assert env["SKIFF_RUN"] == str(run_dir)
    assert (env["WANDB_MODE"], env["WANDB_API_KEY"]) == ("online", SECRET)
    assert not {"UV_PROJECT_ENVIRONMENT", "RAY_ADDRESS"} & set(env)
    assert SECRET not in json.dumps(found["argv"])
    assert env["RAY_AUTH_MODE"] == "token"
    length, mode, token = found["token"]
    assert (length, mode) == (64, 0o600)
    assert not Path(token).parent.exists()
    (step,) = events.read(run_dir, "step")
    assert step["seconds"] == {"step": 2.0}


def test_a_resumed_run_does_not_validate_first(
    runtime_config: Configured, run_dir: Path, verl: Any
) -> None:
    seen = verl()
    run_verl(runtime_config(), run_dir, "/models/tiny", {}, Start(1, 1, 3), NO_KERNELS)
    assert "trainer.val_before_train=false" in seen()["argv"]
    assert seen()["env"]["WANDB_MODE"] == "offline"


def test_the_end_of_verl_is_told_by_its_cause(
    runtime_config: Configured, run_dir: Path, verl: Any
) -> None:
    verl(f"{STEP}; metrics.flush(); raise OSError(28, 'No space left on device')")
    with pytest.raises(InfraError) as caught:
        run_verl(runtime_config(), run_dir, "/models/tiny", {}, Start(1, 1, 0), NO_KERNELS)
    assert caught.value.what == "the disk is full (No space left on device)"
    assert caught.value.where == "verl ended with exit code 1"
    assert str(run_dir / "logs" / "verl.01.log") in caught.value.remedy
    assert len(list(events.read(run_dir, "step"))) == 1  # what came before is kept


def test_a_failure_that_may_pass_is_told_as_such(
    runtime_config: Configured, run_dir: Path, verl: Any
) -> None:
    (run_dir / "attempts" / "02").mkdir()
    verl("raise OSError(116, 'Stale file handle')")
    with pytest.raises(TransientError) as caught:
        run_verl(runtime_config(), run_dir, "/models/tiny", {}, Start(2, 3, 0), NO_KERNELS)
    assert "Stale file handle" in caught.value.what
    assert caught.value.why == "a new process opens it anew"
    assert (run_dir / "logs" / "verl-3.02.log").exists()


def test_a_kill_of_verl_is_no_fault_of_the_run(
    runtime_config: Configured, run_dir: Path, verl: Any
) -> None:
    verl("import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    with pytest.raises(TransientError, match="was killed by SIGKILL"):
        run_verl(runtime_config(), run_dir, "/models/tiny", {}, Start(1, 1, 0), NO_KERNELS)


def test_it_ends_when_it_has_saved_on_request(
    runtime_config: Configured, run_dir: Path, verl: Any
) -> None:
    request = request_file(run_dir, 1)
    request.parent.mkdir(parents=True)
    request.touch()
    folder = run_dir / "ckpt" / "global_step_1"
    verl(
        f"os.makedirs({str(folder)!r}); open({str(folder / 'skiff-saved')!r}, 'w')\n"
        f"{STEP}; metrics.flush()\n"
        "import time; time.sleep(600)"
    )
    code = run_verl(runtime_config(), run_dir, "/models/tiny", {}, Start(1, 1, 0), NO_KERNELS)
    assert code == SAVED
    assert len(list(events.read(run_dir, "step"))) == 1
    assert complete_steps(run_dir / "ckpt") == [1]


def test_all_attempts_are_one_run_of_wandb(
    runtime_config: Configured, run_dir: Path, verl: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_RUN_ID", "of-another-run")
    seen = verl()
    ids = []
    for attempt in (1, 2):
        (run_dir / "attempts" / f"{attempt:02d}").mkdir(exist_ok=True)
        start = Start(attempt, 1, 0)
        run_verl(runtime_config(), run_dir, "/models/tiny", {}, start, NO_KERNELS)
        ids.append(seen()["env"]["WANDB_RUN_ID"])
        assert seen()["env"]["WANDB_RESUME"] == "allow"
    assert ids[0] == ids[1] != "of-another-run"


def test_a_finished_run_is_not_trained_again(
    runtime_config: Configured, run_dir: Path, verl: Any, tiny_model: str, runtime_server: Any
) -> None:
    rendezvous = runtime_server.folder / "runtime.json"
    verl("raise SystemExit('must not be started')")
    config = runtime_config(
        model={"path": tiny_model}, train={"steps": 2, "export": False}, logging={"wandb": False}
    )
    write_config(config, run_dir / "config.toml")
    checkpoint = run_dir / "ckpt" / "global_step_2"
    (checkpoint / "actor").mkdir(parents=True)
    write_manifest(checkpoint)
    train(run_dir / "config.toml", rendezvous, attempt=1)
    assert (run_dir / "data" / "agent_loop.yaml").exists()
    assert [event["name"] for event in events.read(run_dir, "phase")] == ["runtime", "tasks"]
    train(run_dir / "config.toml", rendezvous, attempt=2)
    assert (run_dir / "ckpt" / "latest_checkpointed_iteration.txt").read_text() == "2"


def test_there_must_be_something_to_export(run_dir: Path, verl: Any) -> None:
    with pytest.raises(InfraError, match="no whole checkpoint to export"):
        export(run_dir)


def test_a_failed_export_keeps_the_old_one(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = run_dir / "ckpt" / "global_step_2"
    (checkpoint / "actor").mkdir(parents=True)
    write_manifest(checkpoint)
    (run_dir / "model" / "policy").mkdir(parents=True)
    monkeypatch.setattr(trainer.sys, "executable", "/bin/false")
    with pytest.raises(InfraError, match=r"verl\.model_merger failed: exit code 1"):
        export(run_dir)
    assert (run_dir / "model" / "policy").is_dir()


def test_a_failed_phase_is_not_told_as_done(run_dir: Path) -> None:
    with pytest.raises(ValueError, match="bad"), phase(run_dir, "tasks"):
        raise ValueError("bad")
    assert [event["kind"] for event in events.read(run_dir)] == ["phase_begin"]
