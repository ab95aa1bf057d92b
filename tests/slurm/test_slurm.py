"""Submitted runs on a real Slurm with the real entry points. The trainer gets as far as its first
check: its whole start takes minutes and is tests/train's."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import cli, events
from skiff.launch import run_folder
from skiff.launch.progress import read_progress
from skiff.launch.slurm import Job, show_job
from skiff.launch.status import status
from skiff.launch.submit import cancel, job_ids
from skiff.sandbox import RuntimeClient, SandboxSpec

from .runs import Run, processes_of, until

Profile = dict[str, dict[str, Any]]
Submit = Callable[..., Run]
Write = Callable[[Profile], Path]
CLONE = Path(__file__).parents[2]
GONE = "is no Hugging Face model folder (no config.json in it)"


def test_a_trainer_that_fails_ends_the_job_with_its_exit_code(
    submit_run: Submit,
    profile: Profile,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "planted-secret")
    run = submit_run({**profile, "model": {"path": "/gone", "context_tokens": 8192}})
    jobs = run.ended()
    assert {half: (job.nodes, job.state, job.exit) for half, job in jobs.items()} == {
        "runtime": ("cpu1", "FAILED", 2),
        "train": ("gpu1", "FAILED", 2),
    }
    lines = "\n".join(status(run.folder))
    assert "train    job" in lines
    assert "failed on gpu1" in lines
    assert f"error    model.path = /gone: {GONE}" in lines
    assert cli.main(["logs", str(run.folder)]) == 0
    assert f"train-gpu1 | error: model.path = /gone: {GONE}" in capsys.readouterr().out
    [finished] = events.read(run.folder, "finished")
    assert finished["exit_code"] == 2
    assert (run.folder / "report.html").exists()
    texts = [path.read_bytes() for path in run.folder.rglob("*") if path.is_file()]
    assert not any(b"planted-secret" in text for text in texts)


def test_a_server_that_fails_ends_the_trainer(submit_run: Submit, profile: Profile) -> None:
    run = submit_run({**profile, "runtime": {"host": "203.0.113.1"}})
    jobs = run.ended()
    assert [job.exit for job in jobs.values()] == [3, 3]
    assert "cannot listen on 203.0.113.1" in "\n".join(status(run.folder))


def test_two_jobs_end_together(submit_run: Submit, profile: Profile) -> None:
    profile["slurm"]["mode"] = "two-jobs"
    run = submit_run({**profile, "model": {"path": "/gone", "context_tokens": 8192}})
    jobs = run.ended()
    assert jobs["runtime"].id != jobs["train"].id
    assert (jobs["runtime"].exit, jobs["train"].exit) == (0, 2)
    assert GONE in "\n".join(status(run.folder))


def test_a_wrapper_is_submitted_by_hand(profile: Profile, write: Write, tmp_path: Path) -> None:
    file = write({**profile, "model": {"path": "/gone", "context_tokens": 8192}})
    [first, *_] = run_wrapper("het", file, tmp_path)
    assert (first.state, first.exit) == ("FAILED", 2)
    assert GONE in (tmp_path / "log").read_text()
    assert not (tmp_path / "runs").exists()


def test_a_server_that_was_started_by_hand_is_cancelled(
    profile: Profile, write: Write, tmp_path: Path
) -> None:
    def cancel_it() -> None:
        [published] = until(lambda: sorted(tmp_path.glob("runs/*/rendezvous/01/runtime-*.json")))
        assert cli.main(["cancel", str(published.parents[2])]) == 0

    [job] = run_wrapper("runtime", write(profile), tmp_path, cancel_it)
    assert job.state == "CANCELLED"
    assert processes_of(tmp_path / "runs") == []


def run_wrapper(
    name: str, file: Path, folder: Path, meanwhile: Callable[[], None] = lambda: None
) -> list[Job]:
    """Submit sbatch/<name>.sbatch, with its lines #SBATCH edited for this Slurm, to its end."""
    text = (CLONE / "sbatch" / f"{name}.sbatch").read_text()
    text = text.replace("=gpu_test ", "=gpu ").replace("=test\n", "=cpu\n")
    wrapper = folder / f"{name}.sbatch"
    wrapper.write_text(re.sub(r"--cpus-per-task=\d+ --mem=\w+", "--cpus-per-task=2", text))
    options = ["--parsable", f"--chdir={CLONE}", f"--output={folder / 'log'}"]
    job_id = subprocess.check_output(["sbatch", *options, wrapper, file], text=True).strip()
    meanwhile()
    until(lambda: all(job.ended for job in show_job(job_id)))
    return show_job(job_id)


async def test_a_runtime_alone_serves_until_it_is_cancelled(
    submit_run: Submit, profile: Profile, debian_image: str
) -> None:
    run = submit_run(profile, runtime_only=True)
    meeting, key = run.published().parent, run.folder / "rendezvous" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    async with RuntimeClient.from_folder(meeting, key) as client:
        sandbox = await client.start(SandboxSpec.from_config(run.config, image=debian_image))
        done = await sandbox.run("echo served", timeout=30)
        assert done.stdout == b"served\n"
        assert "1 ready" in "\n".join(status(run.folder))
        assert len(run.containers()) == 1
    assert read_progress(run.folder).state == "running"
    cancel(run.folder)
    assert [job.state for job in run.ended().values()] == ["CANCELLED"]
    assert read_progress(run.folder).state == "cancelled"
    assert list(meeting.glob("*.json")) == []


def test_before_the_time_limit_a_run_is_requeued_so_often(
    submit_run: Submit, profile: Profile
) -> None:
    profile["slurm"]["requeues"] = 1
    run = submit_run(profile, runtime_only=True)
    [job_id] = job_ids(run.folder).values()
    warn = ["scancel", "--batch", "--signal=USR1", job_id]  # as Slurm does before the limit
    run.published()
    subprocess.run(warn, check=True)
    until(lambda: run.jobs()["runtime"].reason == "BeginTime")
    # Slurm waits two minutes, for credentials to expire.
    subprocess.run(["scontrol", "update", f"JobId={job_id}", "StartTime=now+2"], check=True)
    run.published(attempt=2)
    subprocess.run(warn, check=True)
    assert [(job.state, job.exit) for job in run.ended().values()] == [("FAILED", 124)]
    assert sorted(path.name for path in (run.folder / "attempts").iterdir()) == ["01", "02"]


def test_a_dry_run_prints_what_is_submitted(
    profile: Profile,
    write: Write,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(run_folder.time, "strftime", lambda _: "20260101-000000")
    for half in ("runtime", "trainer"):
        profile["slurm"][half]["extra"] = ["--begin=now+1hour", "--job-name=it's two words"]
    file = write(profile)
    run = tmp_path / "runs" / "tiny-20260101-000000"

    assert cli.main(["launch", str(file), "--dry-run"]) == 0
    printed = capfd.readouterr()
    assert not run.exists()
    assert printed.err == f"sbatch --parsable {run}/attempts/01/het.sbatch\n"

    assert cli.main(["launch", str(file)]) == 0
    assert (run / "attempts" / "01" / "het.sbatch").read_text() == printed.out
    assert cli.main(["status", str(run)]) == 0
    assert "pending (BeginTime) from 20" in capfd.readouterr().out
    [job_id] = job_ids(run).values()
    shown = subprocess.check_output(["scontrol", "show", "job", job_id], text=True)
    assert shown.count("JobName=it's two words\n") == 2
    assert cli.main(["cancel", str(run)]) == 0
    assert cli.main(["logs", "-f", str(run)]) == 0
    assert cli.main(["status", str(run)]) == 0
    assert "train    job" in (out := capfd.readouterr().out)
    assert "cancelled" in out


def test_slurm_says_why_it_takes_no_job(
    profile: Profile,
    write: Write,
    capfd: pytest.CaptureFixture[str],
) -> None:
    profile["slurm"]["trainer"]["partition"] = "nowhere"
    assert cli.main(["launch", str(write(profile))]) == 3
    assert "error: sbatch: " in (err := capfd.readouterr().err)
    assert "invalid partition specified: nowhere" in err
    assert subprocess.check_output(["squeue", "--noheader"]) == b""
