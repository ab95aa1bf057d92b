"""`skiff status` and `skiff cancel` from what a run folder and Slurm say. tests/slurm has a real
Slurm and a real server."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from skiff import cli, events
from skiff.config import Config
from skiff.errors import ConfigError, InfraError
from skiff.launch import run_folder, status, submit
from skiff.launch.sbatch import Shape
from skiff.launch.slurm import Job

Slurm = Callable[..., list[list[str]]]


def job(state: str, job_id: str = "7", group: int | None = None, exit_code: int = 0) -> Job:
    return Job(job_id, group, state, "", "", "node7", exit_code)


@pytest.fixture
def slurm(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Slurm:
    """`slurm(jobs)`: what it says of the run's job 7; returns what it is asked to end, and how."""
    submit.note_jobs(run_dir / "attempts" / "01", {Shape.HET: "7"})
    asked: list[list[str]] = []

    def says(*jobs: Job) -> list[list[str]]:
        for module in (status.slurm, submit):
            monkeypatch.setattr(module, "show_job", lambda _: list(jobs))
        monkeypatch.setattr(submit, "terminate", lambda one: asked.append(["terminate", one]))
        monkeypatch.setattr(submit, "scancel", lambda many: asked.append(["scancel", *many]))
        return asked

    return says


def test_a_running_run(run_dir: Path, slurm: Slurm) -> None:
    slurm(job("RUNNING", group=0), job("RUNNING", "8", group=1))
    place = {"url": "http://127.0.0.1:1", "port": 1}
    meeting = run_folder.meeting(run_dir, 1)
    (meeting / "runtime-node7.json").write_text(json.dumps(place))
    events.emit(run_dir, "step", step=4, seconds={"step": 2.0}, metrics={"reward_mean": 0.25})
    assert status.status(run_dir)[:2] == [
        "runtime  job 7 running on node7",
        "train    job 8 running on node7",
    ]
    assert status.status(run_dir)[2].startswith("server   http://127.0.0.1:1 does not answer here")
    assert status.status(run_dir)[3:] == ["step     4 of 1, reward 0.250"]


def test_what_slurm_has_forgotten(run_dir: Path, slurm: Slurm) -> None:
    slurm()
    assert status.status(run_dir) == ["jobs     Slurm knows none of them any more"]


def test_the_cause_is_the_trainers_or_the_servers(run_dir: Path, slurm: Slurm) -> None:
    slurm(job("FAILED", exit_code=3))
    (run_dir / "logs" / "slurm.7.log").write_text("error: srun: no node\n")
    assert status.status(run_dir)[-1] == "error    srun: no node"
    events.emit(run_dir, "error", what="port 80 is taken")
    events.emit(run_dir, "finished", exit_code=130, reason="interrupted")
    assert status.status(run_dir)[-1] == "error    port 80 is taken"
    events.emit(run_dir, "finished", exit_code=3, reason="out of memory")
    assert status.status(run_dir)[-1] == "error    out of memory"


def test_what_runs_is_ended_in_order_and_what_waits_is_cancelled(
    run_dir: Path, slurm: Slurm
) -> None:
    asked = slurm(job("RUNNING", group=0), job("RUNNING", "8", group=1))
    submit.cancel(run_dir)
    slurm(job("PENDING", group=0), job("PENDING", "8", group=1))
    submit.cancel(run_dir)
    slurm(job("COMPLETED"))
    submit.cancel(run_dir)
    slurm()
    submit.cancel(run_dir)
    assert asked == [["terminate", "7"], ["scancel", "7"]]
    assert len(list(events.read(run_dir, "cancelled"))) == 2  # what had ended was not


@pytest.mark.parametrize("error", [InfraError("no such partition"), OSError(28, "disk is full")])
def test_of_a_submission_that_fails_nothing_is_left(
    run_dir: Path,
    slurm: Slurm,
    runtime_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    asked, answers = slurm(job("FAILED")), ["11"]

    def sbatch(script: Path, *, options: list[str]) -> str:
        if not answers:
            raise error
        return answers.pop()

    monkeypatch.setattr(submit, "sbatch", sbatch)
    config = runtime_config(
        runtime={"host": "0.0.0.0"},
        hardware={"platform": "cpu", "dtype": "float32"},
        slurm={"mode": "two-jobs"},
    )
    with pytest.raises(type(error)):
        submit.submit(config, run_dir)
    assert asked == [["scancel", "11"]]
    assert submit.job_ids(run_dir) == {Shape.HET: "7"}
    assert run_folder.newest_attempt(run_dir) == "01"


def test_a_run_is_not_resumed_beside_its_jobs(
    run_dir: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm(job("COMPLETED", group=0), job("RUNNING", "8", group=1))
    for local in ([], ["--local"]):
        assert cli.main(["resume", str(run_dir), *local]) == 2
        assert f"{run_dir}: has not ended: job 7" in capsys.readouterr().err


def test_a_run_that_was_not_submitted(run_dir: Path) -> None:
    assert status.status(run_dir) == ["jobs     none: the run was not submitted to Slurm"]
    with pytest.raises(ConfigError, match="was not submitted to Slurm"):
        submit.cancel(run_dir)


def test_a_run_of_which_nothing_has_begun(run_dir: Path) -> None:
    (run_dir / "attempts" / "01").rmdir()
    (run_dir / "config.toml").write_text("of = 'another version'\n")
    assert status.status(run_dir) == ["jobs     none: the run was not submitted to Slurm"]


def test_no_run_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is no run folder"):
        status.status(tmp_path)


def test_the_time_that_is_left(run_dir: Path, slurm: Slurm) -> None:
    ends = datetime.now() + timedelta(seconds=100.5)
    running = replace(job("RUNNING"), ends=ends.isoformat(timespec="microseconds"))
    slurm(running)
    config = (run_dir / "config.toml").read_text().replace("steps = 1\n", "steps = 40\n", 1)
    (run_dir / "config.toml").write_text(config)
    for step in (1, 2, 3):
        events.emit(run_dir, "step", step=step, seconds={"step": 10.0}, metrics={})
    lines = status.status(run_dir)
    assert lines[0] == "het      job 7 running on node7 (1 min 40 s to its time limit)"
    assert lines[1] == "step     3 of 40"
    assert lines[2] == "ends     in about 6 min 10 s, after the time limit"


def test_at_the_port_of_a_dead_server_another_one_answers(run_dir: Path, slurm: Slurm) -> None:
    class Other(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"[]")

    slurm(job("RUNNING"))
    with HTTPServer(("127.0.0.1", 0), Other) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        place = run_folder.meeting(run_dir, 1) / "runtime-n1.json"
        place.write_text(json.dumps({"url": url}))
        [line] = [line for line in status.status(run_dir) if line.startswith("server")]
        server.shutdown()
    assert line == f"server   {url} is none of ours any more: something else answers there"


def test_leases_of_both_halves(run_dir: Path, slurm: Slurm) -> None:
    slurm(job("RUNNING"))
    meeting = run_folder.meeting(run_dir, 1)
    for half, age in (("runtime", 3), ("train", 90)):
        beat = {"half": half, "node": "n1", "job": "7", "number": 4, "time": time.time() - age}
        (meeting / f"lease-{half}-n1.json").write_text(json.dumps(beat))
    assert status.status(run_dir)[1:] == [
        "lease    runtime on n1: renewed 3 s ago",
        "lease    train on n1: renewed 90 s ago",
    ]


def test_the_same_as_json(run_dir: Path, slurm: Slurm, capsys: pytest.CaptureFixture[str]) -> None:
    slurm(job("FAILED", exit_code=3))
    events.emit(run_dir, "finished", exit_code=3, reason="out of memory")
    assert cli.main(["status", str(run_dir), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["jobs"][0][1]["state"] == "FAILED"
    assert found["progress"]["error"] == "out of memory"


def test_it_is_watched_until_the_run_has_ended(
    run_dir: Path, slurm: Slurm, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    slurm(job("RUNNING"))
    monkeypatch.setattr(status.time, "sleep", lambda _: slurm(job("COMPLETED")))
    assert cli.main(["status", str(run_dir), "--watch"]) == 0
    shown = capsys.readouterr().out
    assert shown.index("job 7 running") < shown.index("job 7 completed")
