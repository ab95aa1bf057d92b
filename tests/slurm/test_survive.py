"""Runs that outlive their jobs, on a real Slurm with both real halves. verl alone is a stand-in: it
has verl's files and loop, and no model (benchmarks/drills has the real one)."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from skiff import cli, events
from skiff.launch.status import status
from skiff.launch.submit import cancel, job_ids
from skiff.train import manifest, resume
from skiff.train.save_request import SAVED

from .runs import Run, SlurmTool, until

Profile = dict[str, dict[str, Any]]
Submit = Callable[..., Run]
CLONE = Path(__file__).parents[2]
STEPS = 100

VERL = CLONE / "tests" / "train" / "main_ppo"
# The real entry point; its interpreter is verl's.
TRAIN = """
import os, runpy, sys, types
from skiff.train import trainer
attempt = int(sys.argv[sys.argv.index("--attempt") + 1])
os.environ["STAND_IN_SECONDS"] = "{step_seconds}" if attempt <= {slow} else "0"
trainer.sys = types.SimpleNamespace(executable={verl!r})
sys.argv[0] = {entrypoint!r}
runpy.run_path({entrypoint!r}, run_name="__main__")
"""


@pytest.fixture
def profile(profile: Profile) -> Profile:
    """A run of STEPS steps that may be requeued twice."""
    profile["train"] = {"steps": STEPS, "save_every": 7, "export": False, "validate_first": False}
    profile["tasks"] = {"train": ["shell:train"], "validation": ["shell:validation"]}
    profile["tasks"]["train_limit"] = profile["tasks"]["validation_limit"] = 4
    profile["rollout"] = {"prompts_per_step": 2}
    profile["slurm"] |= {"requeues": 2, "signal_seconds": 50}
    return profile


@pytest.fixture
def verl(stand_in: Callable[..., None]) -> Callable[..., None]:
    """`verl(step_seconds, slow=1)`: runs that are submitted from now on have such steps in their
    first `slow` attempts, and take no time later."""
    entrypoint = str(CLONE / "entrypoints" / "train")

    def call(step_seconds: float, *, slow: int = 1) -> None:
        text = TRAIN.format(
            step_seconds=step_seconds, slow=slow, verl=str(VERL), entrypoint=entrypoint
        )
        stand_in(text)

    return call


def steps(run: Run) -> list[int]:
    return [event["step"] for event in events.read(run.folder, "step")]


def finished(run: Run) -> list[tuple[int, str]]:
    return [(event["exit_code"], event["reason"]) for event in events.read(run.folder, "finished")]


def signal_half(run: Run) -> None:
    """What Slurm sends before the time limit."""
    [job_id] = job_ids(run.folder).values()
    subprocess.run(["scancel", "--batch", "--signal=USR1", job_id], check=True)


def begin_again(run: Run, attempt: int, *changes: str) -> None:
    """Slurm waits two minutes before it begins a requeued job, for credentials to expire."""

    def requeued() -> bool:
        [job_id] = job_ids(run.folder).values()
        shown = subprocess.check_output(["scontrol", "show", "job", job_id], text=True)
        waits = all(job.reason == "BeginTime" for job in run.jobs().values())
        return waits and f"Restarts={attempt - 1} " in shown

    until(requeued)
    for job in run.jobs().values():
        words = [f"JobId={job.id}", "StartTime=now+1", *changes]
        subprocess.run(["scontrol", "update", *words], check=True)
    run.published(attempt)


def test_a_time_limit_is_hit_twice(
    submit_run: Submit, profile: Profile, verl: Callable[..., None]
) -> None:
    verl(0.5, slow=2)
    for half in ("runtime", "trainer"):
        profile["slurm"][half]["time"] = "1"
    run = submit_run(profile)
    begin_again(run, 2)
    begin_again(run, 3, "TimeLimit=10")
    jobs = run.ended()
    assert {half: (job.state, job.exit) for half, job in jobs.items()} == {
        "runtime": ("COMPLETED", 0),
        "train": ("COMPLETED", 0),
    }
    (code, first), (_, second), third = finished(run)
    assert code == SAVED
    assert first.startswith("saved before the time limit: goes on from the checkpoint of step ")
    assert int(first.split()[-1]) < int(second.split()[-1]) < STEPS
    assert third == (0, "done")
    assert steps(run) == list(range(1, STEPS + 1))  # none is done twice
    assert [manifest.fault(path) for path in (run.folder / "ckpt").glob("global_*")] == ["", ""]
    wandb = run.folder / "metrics" / "wandb-id"
    assert len(wandb.read_text().strip()) == 16


def test_a_step_that_is_too_long_is_done_again(
    submit_run: Submit, profile: Profile, verl: Callable[..., None]
) -> None:
    verl(600.0)
    profile["slurm"] |= {"requeues": 0, "signal_seconds": 4}
    run = submit_run(profile)
    until(lambda: (run.folder / "logs" / "verl.01.log").exists())
    signal_half(run)
    jobs = run.ended()
    assert [(job.state, job.exit) for job in jobs.values()] == [("FAILED", 124)] * 2
    [(code, reason)] = finished(run)
    assert code == SAVED
    assert reason == (
        "the time limit came before the step could be saved within 2 s (slurm.signal_seconds):"
        " goes on from the start"
    )


def test_a_run_that_is_preempted_goes_on_until_it_is_cancelled(
    submit_run: Submit, profile: Profile, verl: Callable[..., None]
) -> None:
    verl(0.5, slow=2)
    run = submit_run(profile)
    until(lambda: len(steps(run)) > 7)
    urgent = ["--partition=urgent", "--exclusive", "--time=1", "--output=/dev/null"]
    subprocess.run(["sbatch", *urgent, "--wrap=sleep 3"], check=True)
    begin_again(run, 2)
    done = len(steps(run))
    until(lambda: len(steps(run)) > done)
    cancel(run.folder)
    assert [job.state for job in run.ended().values()] == ["CANCELLED", "CANCELLED"]
    assert finished(run) == [(130, "interrupted")] * 2
    # Each attempt began after the newest checkpoint of the one before.
    assert sorted(set(steps(run))) == list(range(1, max(steps(run)) + 1))
    assert resume.newest(run.folder) >= 7


def test_a_run_that_was_cancelled_is_submitted_again(
    submit_run: Submit,
    profile: Profile,
    verl: Callable[..., None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    verl(0.5)
    run = submit_run(profile)
    until(lambda: len(steps(run)) > 7)
    [first] = job_ids(run.folder).values()
    assert cli.main(["resume", str(run.folder)]) == 2
    assert f"has not ended: job {first}" in capsys.readouterr().err
    cancel(run.folder)
    run.ended()
    saved = resume.newest(run.folder)
    assert cli.main(["resume", str(run.folder)]) == 0
    [second] = job_ids(run.folder).values()
    assert f"job {second}: het" in capsys.readouterr().out
    assert [(job.state, job.exit) for job in run.ended().values()] == [("COMPLETED", 0)] * 2
    assert finished(run) == [(130, "interrupted"), (0, "done")]
    again = [step for step in steps(run) if steps(run).count(step) > 1]
    assert sorted(set(steps(run))) == list(range(1, STEPS + 1))
    assert all(step > saved for step in again)


def test_a_run_that_loses_a_node_goes_on(
    submit_run: Submit, profile: Profile, verl: Callable[..., None], slurm: SlurmTool
) -> None:
    verl(0.5)
    profile["slurm"]["lease_seconds"] = 6.0
    run = submit_run(profile)
    until(lambda: len(steps(run)) > 7)
    with slurm.lost("gpu1"):
        until(lambda: "train half on gpu1: has not renewed" in "\n".join(status(run.folder)))
    begin_again(run, 2)
    assert [(job.state, job.exit) for job in run.ended().values()] == [("COMPLETED", 0)] * 2
    assert sorted(set(steps(run))) == list(range(1, STEPS + 1))


def test_a_run_whose_trainer_is_killed_goes_on(
    submit_run: Submit, profile: Profile, verl: Callable[..., None]
) -> None:
    verl(0.5)
    run = submit_run(profile)
    until(lambda: len(steps(run)) > 7)
    [trainer] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(run.folder / "config.toml") in (words := process.info["cmdline"] or [])
        and any(word.endswith("entrypoints/train") for word in words)
    ]
    trainer.kill()
    begin_again(run, 2)
    assert [(job.state, job.exit) for job in run.ended().values()] == [("COMPLETED", 0)] * 2
    (_, first), second = finished(run)
    assert first.startswith("trainer: was killed by SIGKILL")
    assert second == (0, "done")
    assert sorted(set(steps(run))) == list(range(1, STEPS + 1))
