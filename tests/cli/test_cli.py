"""The `skiff` command as a person calls it: exit codes and one clear error each."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import cli, events
from skiff.config import load_run_config
from skiff.config.load import parse_config

DEMO = str(Path(__file__).parents[2] / "profiles" / "demo.toml")
COMMANDS = [
    [],
    ["run"],
    ["resume"],
    ["launch"],
    ["status"],
    ["logs"],
    ["cancel"],
    ["config"],
    ["config", "show"],
    ["show"],
    ["report"],
    ["tasks"],
    ["tasks", "list"],
    ["tasks", "show"],
    ["tasks", "build"],
    ["tasks", "validate"],
    ["tasks", "solve"],
    ["images"],
    ["images", "pull"],
    ["images", "list"],
    ["images", "prune"],
    ["images", "import"],
    ["kernels"],
    ["kernels", "list"],
    ["kernels", "explain"],
    ["kernels", "verify"],
    ["kernels", "prune"],
]
Skiff = Callable[..., tuple[int, str, str]]


@pytest.fixture
def skiff(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Skiff:
    """`skiff(*arguments)`: exit code, output, errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> tuple[int, str, str]:
        code = cli.main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_explains_itself(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main([*command, "--help"])
    assert caught.value.code == 0
    assert "usage: skiff" in capsys.readouterr().out


@pytest.mark.parametrize("command", [[], ["tasks"], ["config"], ["frobnicate"], ["run"]])
def test_half_a_command_is_refused(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(command)
    assert caught.value.code == 2
    assert "usage: skiff" in capsys.readouterr().err


# What is wrong -> words of the one error.
FAULTS: dict[str, tuple[list[str], str]] = {
    "task": (
        ["tasks", "show", "shell:train", "shell:chmod-agenda-anchor-ambre"],
        "tasks: unknown task 'shell:chmod-agenda-anchor-ambre'",
    ),
    "spec": (["tasks", "list", "shell:trian"], "unknown split 'trian'"),
    "source": (["tasks", "list", "shel:train"], "did you mean 'shell'?"),
    "dataset": (["tasks", "list", "r2e:{tmp}/gone.jsonl"], "{tmp}/gone.jsonl"),
    "row": (["tasks", "list", "swebench:{tmp}/rows.jsonl"], "{tmp}/rows.jsonl"),
    "own row": (["tasks", "list", "tasks:{tmp}/rows.jsonl"], "{tmp}/rows.jsonl"),
    "validate": (["tasks", "validate", "shell:trian"], "unknown split 'trian'"),
    "profile": (["run", "{tmp}/gone.toml"], "{tmp}/gone.toml: no such profile"),
    "model": (["run", DEMO, "--set", "model.path={tmp}"], "no config.json in it"),
    "tasks": (["run", DEMO, "--tasks", "synthetic:nosuchpackage"], "nosuchpackage"),
    "key": (["run", DEMO, "--set", "train.stesp=2"], "did you mean 'steps'?"),
    "value": (["run", DEMO, "--set", "train.steps=two"], "train.steps"),
    "set": (["config", "show", DEMO, "--set", "train.steps"], "section.key=value"),
    "no nodes": (["launch", DEMO], "a profile without [slurm]: asks for no nodes"),
    "image": (
        ["launch", DEMO.replace("demo", "slurm-8gpu"), "--runtime-only", "--dry-run"],
        "images: /scratch/me/sif/skiff-runtime-VERSION.sif: cannot be read",
    ),
    "status": (["status", "{tmp}"], "{tmp}: is no run folder"),
    "logs": (["logs", "{tmp}"], "was not submitted to Slurm"),
    "cancel": (["cancel", "{tmp}"], "was not submitted to Slurm"),
    "run folder": (["resume", "{tmp}/gone"], "is no run folder"),
    "report": (["report", "{tmp}/gone"], "no such run folder"),
    "trajectory": (["show", "{tmp}/gone.json"], "cannot be read"),
    "no trajectory": (["show", "{tmp}"], "holds no stored trajectories"),
    "sandbox profile": (
        ["tasks", "validate", "shell:train", "--profile", "{tmp}/gone.toml"],
        "no such profile",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_one_error(
    skiff: Skiff, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SKIFF_HOME", str(tmp_path / "home"))
    (tmp_path / "rows.jsonl").write_text('{"instance_id": 3}\n')
    arguments, words = FAULTS[name]
    code, out, err = skiff(*(part.format(tmp=tmp_path) for part in arguments))
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("error:") == 1
    assert words.format(tmp=tmp_path) in err
    assert not (tmp_path / "runs").exists()


def test_the_program_itself_fails_without_traceback(tmp_path: Path) -> None:
    program = Path(sys.executable).parent / "skiff"
    done = subprocess.run(
        [program, "resume", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_the_command_line_starts_without_the_trainer() -> None:
    code = (
        "import sys; from skiff import cli, launch; import skiff.launch.run\n"
        "print([m for m in ('torch', 'ray', 'verl', 'vllm', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_config_show_is_a_profile_again(skiff: Skiff, tmp_path: Path) -> None:
    code, out, _ = skiff("config", "show", DEMO, "--set", "train.steps=7", "--agent", "openhands")
    assert code == 0
    (tmp_path / "again.toml").write_text(out)
    config = load_run_config(tmp_path / "again.toml")
    assert (config.train.steps, config.agent.name) == (7, "openhands")


def test_config_show_verl_prints_the_overrides(skiff: Skiff) -> None:
    code, out, _ = skiff(
        "config", "show", DEMO, "--verl", "--set", "rollout.trajectories_per_prompt=16"
    )
    assert code == 0
    assert "actor_rollout_ref.rollout.n=16" in out.splitlines()


def test_tasks_replaces_both_splits(skiff: Skiff) -> None:
    _, out, _ = skiff("config", "show", DEMO, "--tasks", "synthetic:six")
    assert 'train = [\n    "synthetic:six",\n]' in out
    assert "validation = []" in out


def test_tasks_are_listed_and_shown(skiff: Skiff) -> None:
    code, out, _ = skiff("tasks", "list")
    assert code == 0
    assert "synthetic" in out
    code, out, _ = skiff("tasks", "list", "shell:validation")
    assert code == 0
    task_id = next(word for word in out.split() if word.startswith("shell:chmod-"))
    code, out, _ = skiff("tasks", "show", "shell:validation", task_id)
    assert code == 0
    assert task_id in out


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    folder = tmp_path / "trajectories" / "step_000001"
    folder.mkdir(parents=True)
    for number, reward in enumerate((1.0, 0.0)):
        stored = {"task_id": f"shell:task-{number}", "step": 1, "reward": reward}
        (folder / f"train-{number}.json").write_text(json.dumps(stored))
    events.emit(tmp_path, "step", step=1, seconds={"step": 2.0}, metrics={})
    events.emit(tmp_path, "validation", step=1, solved=1, graded=4, masked=0)
    return tmp_path


def test_a_trajectory_is_shown(skiff: Skiff, run_dir: Path) -> None:
    code, out, _ = skiff("show", run_dir)
    assert code == 0
    assert "shell:task-1" in out
    assert "shell:task-0" in skiff("show", run_dir, "--index", "0")[1]
    file = run_dir / "trajectories" / "step_000001" / "train-0.json"
    assert "shell:task-0" in skiff("show", file)[1]
    code, _, err = skiff("show", run_dir, "--index", "5")
    assert code == 2
    assert "no trajectory number 5" in err


def test_a_report_is_written(skiff: Skiff, run_dir: Path) -> None:
    code, out, _ = skiff("report", run_dir)
    assert code == 0
    assert str(run_dir / "report.html") in out
    assert (run_dir / "report.html").read_text().startswith("<!DOCTYPE html>")


def test_ctrl_c_has_its_exit_code(skiff: Skiff, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "_config_show", interrupt)
    assert skiff("config", "show", DEMO)[0] == 130


def test_sandbox_commands_have_a_valid_profile_of_their_own() -> None:
    assert parse_config(cli._SANDBOX_PROFILE).sandbox.network is False


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "report", "doctor", "resume"])
def test_a_place_that_cannot_be_looked_at_is_named(
    skiff: Skiff, tmp_path: Path, command: str
) -> None:
    place = tmp_path / ("a" * 300)  # root may look everywhere, but not at this
    code, _, printed = skiff(command, place)
    assert code in (2, 3)
    assert printed.startswith("error: ")
    assert "File name too long" in printed
