"""Every known symptom on a recorded log, and no finding where there is no fault.

The logs are excerpts in the words of the programs that write them. Most were provoked; those of
GPUs, accounting and other stacks are as users have reported them.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import cli, events
from skiff.doctor import after
from skiff.doctor.after import Line, diagnose, find, log_lines
from skiff.doctor.symptoms import SYMPTOMS
from skiff.errors import ConfigError, InfraError
from skiff.launch import submit
from skiff.launch.sbatch import Shape
from skiff.launch.slurm import Job
from skiff.train.causes import failure_of

from .conftest import LOGS

# A log may show what follows from its cause, too.
ALSO = {
    "no-agent-server": {"sandbox-start-slow"},
    "compile-backend": {"no-libcuda", "no-compiler"},
}
# What users of an earlier stack wrote down, in their words, and the rule that knows it.
REPORTED = {
    "ValueError: invalid literal for int() with a MIG UUID": "mig-uuid",
    "BackendCompilerFailed with gcc": "compile-backend",
    "gcc ... -lcuda returned non-zero exit status 1": "no-compiler",
    "Triton finds no headers of Python": "no-python-headers",
    "ImportError: ResourcePoolManager": "cannot-import",
    "Can't instantiate abstract class": "abstract",
    "AssertionError: num_trajectories": "trajectories-mismatch",
    "stuck at 'Creating virtual environment'": "uv-environment",
    "VIRTUAL_ENV does not match the project environment path": "uv-environment",
    "QOSMaxSubmitJobPerUserLimit": "too-many-jobs",
    "no EFA on the test partitions": "no-fabric",
    "no WANDB_API_KEY": "wandb-key",
    "output folders were not made": "folder-not-writable",
    "warning: Flash Attention dtype": "flash-attention-dtype",
    "warning: FSDP deprecation": "fsdp-deprecated",
    "warning: socket IPv6": "ipv6",
    "warning: Ray blocking async": "blocking-get",
    "warning: pydantic Field": "pydantic-field",
    "invalid internal status": "podman-state",
    "source: not found": "dash",
    "workspace must be a LocalWorkspace": "local-workspace",
    "Unknown kind 'OHCodeActAgent'": "unknown-agent",
    "Permission denied: '/testbed'": "path-on-another-machine",
    "Prompt file .../system_prompt.j2 not found": "prompt-file",
    "validation errors on CONTEXT_WINDOW_EXCEEDED": "context-full",
    "Instance is frozen": "frozen",
    "the API keys differ": "wrong-key",
    "the server's URL does not reach Ray's workers": "no-server",
    "server still starting, no openhands-agent-server": "no-agent-server",
    "out of memory, also in the backward pass": "gpu-memory",
    "cannot pickle, endless recursion of a deep copy": "not-copyable",
    "/r2e_tests is not there": "r2e-tests",
    "metrics of empty tensors": "empty-metrics",
    "'Tracking' object has no attribute 'warning'": "not-a-logger",
    "no rights to the Docker daemon": "docker",
}


def names_in(log: Path) -> set[str]:
    return {finding.name for finding in find(log_lines(log, log.name))}


@pytest.mark.parametrize("name", [symptom.name for symptom in SYMPTOMS])
def test_a_symptom_is_known_by_its_log(name: str) -> None:
    assert names_in(LOGS / f"{name}.log") == {name} | ALSO.get(name, set())


def test_each_rule_has_a_name_of_its_own_and_each_log_a_rule() -> None:
    names = [symptom.name for symptom in SYMPTOMS]
    assert len(names) == len(set(names))
    assert {path.stem for path in LOGS.glob("*.log")} == set(names)


@pytest.mark.parametrize("words", REPORTED)
def test_what_was_reported_has_a_rule(words: str) -> None:
    assert REPORTED[words] in {symptom.name for symptom in SYMPTOMS}


@pytest.mark.parametrize(
    "line",
    [
        "OSError: [Errno 28] No space left on device",
        "Disk quota exceeded",
        "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 1 GiB",
        "ray.exceptions.OutOfMemoryError: Task was killed",
        "Could not override 'actor.foo'.",
        "The current node timed out during startup",
        "Failed to connect to GCS within 60 seconds",
        "no runtime server has published itself",
        "all 8 trajectories failed for infrastructure reasons",
        "3 prompts have no result although every trajectory's deadline has passed",
        "Watchdog caught collective operation timeout",
        "torch.distributed.DistBackendError: NCCL error, ncclRemoteError: remote process exited",
        "DistNetworkError: The client socket has timed out after 600000ms",
        "OSError: [Errno 116] Stale file handle",
        "Temporary failure in name resolution",
    ],
)
def test_what_the_trainer_knows_the_doctor_knows(line: str) -> None:
    assert failure_of(line) != failure_of("")
    assert any(not finding.harmless for finding in find([Line("logs/verl.01.log:1", line)]))


def test_a_healthy_run_has_no_finding(run_dir: Path) -> None:
    for log in (LOGS / "healthy").iterdir():
        shutil.copy(log, run_dir / "logs")
    events.emit(run_dir, "step", step=1, seconds={"step": 1.0}, metrics={})
    events.emit(run_dir, "finished", exit_code=0, reason="done", attempt=1)
    found = diagnose(run_dir)
    assert found.causes == []
    assert {finding.name for finding in found.findings} <= {"blocking-get"}
    assert found.state == "finished"


def test_groups_of_a_pattern_stand_in_its_cause() -> None:
    [finding] = find([Line("logs/slurm.7.log:3", "sbatch: error: QOSMaxSubmitJobPerUserLimit")])
    assert "(QOSMaxSubmitJobPerUserLimit)" in finding.cause
    assert finding.where == "logs/slurm.7.log:3"


def test_a_finding_has_its_first_line_and_their_number(run_dir: Path) -> None:
    (run_dir / "logs" / "verl.01.log").write_text(
        "fine\n\x1b[36m(Worker pid=1)\x1b[0m CUDA out of memory. Tried 1 GiB\n"
        "CUDA out of memory. Tried 2 GiB\n"
    )
    [finding] = diagnose(run_dir).causes
    assert (finding.name, finding.count) == ("gpu-memory", 2)
    assert finding.where == "logs/verl.01.log:2"
    assert finding.line == "CUDA out of memory. Tried 1 GiB"


def test_only_the_newest_attempt_counts(run_dir: Path) -> None:
    (run_dir / "logs" / "verl.01.log").write_text("CUDA out of memory\n")
    events.emit(run_dir, "error", what="port 80 of 0.0.0.0 is taken")
    events.emit(run_dir, "finished", exit_code=3, reason="CUDA out of memory", attempt=1)
    (run_dir / "attempts" / "02").mkdir()
    (run_dir / "logs" / "verl.02.log").write_text("fine\n")
    assert diagnose(run_dir).findings == []


def test_events_tell_as_logs_do(run_dir: Path) -> None:
    events.emit(run_dir, "trajectory", reward=None, detail="sandbox: X-API-Key is missing or wrong")
    events.emit(run_dir, "finished", exit_code=3, reason="a: No space left on device\n  -> df")
    events.emit(run_dir, "error", what="port 80 of 0.0.0.0 is taken")
    assert [finding.name for finding in diagnose(run_dir).causes] == [
        "disk-full",
        "port-taken",
        "wrong-key",
    ]


def test_an_unknown_fault_is_said_in_the_runs_own_words(run_dir: Path) -> None:
    events.emit(run_dir, "finished", exit_code=3, reason="moon: is full\n  -> wait\n")
    [finding] = diagnose(run_dir).causes
    assert (finding.name, finding.cause, finding.remedy) == ("unknown", "moon: is full", "wait")


def test_what_slurm_says_of_a_waiting_job(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    submit.note_jobs(run_dir / "attempts" / "01", {Shape.HET: "7"})
    job = Job("7", 0, "PENDING", "QOSMaxJobsPerUserLimit", "", "", 0)
    monkeypatch.setattr(after, "jobs_of", lambda _: [("runtime", job)])
    [finding] = diagnose(run_dir).causes
    assert (finding.name, finding.where) == ("too-many-jobs", "slurm job 7")


def test_where_slurm_is_not_the_rest_is_read(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    submit.note_jobs(run_dir / "attempts" / "01", {Shape.HET: "7"})
    (run_dir / "logs" / "slurm.7.log").write_text("srun: error: Node failure on gpu1\n")
    (run_dir / "logs" / "slurm.6.log").write_text("CUDA out of memory\n")

    def absent(_: Path) -> None:
        raise InfraError("is not installed here")

    monkeypatch.setattr(after, "jobs_of", absent)
    found = diagnose(run_dir)
    assert [finding.name for finding in found.causes] == ["node-lost"]
    assert found.notes == ["Slurm could not be asked: is not installed here"]


def test_the_command(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", str(run_dir)]) == 0
    assert "nothing known is wrong" in capsys.readouterr().out
    (run_dir / "logs" / "train.01.log").write_text("No space left on device [/x]\n")
    assert cli.main(["doctor", str(run_dir)]) == 1
    shown = capsys.readouterr().out
    assert "a disk is full" in shown
    assert "logs/train.01.log:1" in shown
    assert cli.main(["doctor", str(run_dir), "--json"]) == 1
    [finding] = json.loads(capsys.readouterr().out)["findings"]
    assert finding["name"] == "disk-full"


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        diagnose(tmp_path)


def test_a_long_log_is_read_from_its_end(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch, write_lines: Callable[[Path], None]
) -> None:
    log = run_dir / "logs" / "verl.01.log"
    write_lines(log)
    monkeypatch.setattr(after, "LOG_BYTES", 100)
    assert [finding.name for finding in diagnose(run_dir).causes] == ["quota"]


@pytest.fixture
def write_lines() -> Callable[[Path], None]:
    """`write_lines(log)`: an old fault, many bytes that are no UTF-8, a new fault."""

    def write(log: Path) -> None:
        log.write_bytes(b"CUDA out of memory\n" + b"\xff\n" * 100 + b"Disk quota exceeded\n")

    return write
