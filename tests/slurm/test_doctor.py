"""`skiff doctor PROFILE` against a real Slurm: from here and from a node of each half."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff.config import Config
from skiff.doctor import before
from skiff.doctor.after import diagnose
from skiff.doctor.before import check_profile
from skiff.doctor.check import Verdict
from skiff.doctor.cluster import check_cluster
from skiff.launch.slurm import scancel, show_job
from skiff.launch.submit import cancel

from .runs import Run, until

Profile = dict[str, dict[str, Any]]


def verdicts(checks: list[Any]) -> dict[str, Verdict]:
    return {check.name: check.verdict for check in checks}


def test_a_profile_that_fits(profile: Profile, runtime_config: Callable[..., Config]) -> None:
    found = check_cluster(runtime_config(**profile))
    assert verdicts(found) == {
        "slurm": Verdict.OK,
        "account": Verdict.ABSENT,  # this Slurm has no accounting
        "runtime partition": Verdict.OK,
        "runtime request": Verdict.OK,
        "trainer partition": Verdict.OK,
        "trainer request": Verdict.OK,
    }


def test_what_slurm_would_refuse(profile: Profile, runtime_config: Callable[..., Config]) -> None:
    profile["slurm"]["runtime"] = {"partition": "nope"}
    profile["slurm"]["trainer"] = {"partition": "cpu", "gres": "gpu:2"}
    found = check_cluster(runtime_config(**profile))
    failed = [check.name for check in found if check.verdict is Verdict.FAIL]
    assert set(failed) == {
        "runtime partition",
        "runtime request",
        "trainer gres",
        "trainer request",
    }
    [refused] = [check for check in found if check.name == "runtime request"]
    assert "Invalid partition name" in refused.what
    assert not Path(profile["run"]["folder"]).exists()


def test_from_the_nodes(profile: Profile, runtime_config: Callable[..., Config]) -> None:
    model = Path(profile["model"]["path"])
    (model / "model.safetensors").write_bytes(b"\0")
    Path(profile["run"]["folder"]).mkdir()
    found = check_profile(runtime_config(**profile), on_nodes=True)
    assert [check for check in found if check.verdict is Verdict.FAIL] == []
    on = {(check.place, check.name) for check in found}
    assert {
        ("cpu1", "podman"),
        ("cpu1", "port"),
        ("cpu1", "shared folder"),
        ("gpu1", "shared folder"),
        ("gpu1", "model"),
        ("gpu1", "/dev/shm"),
    } <= on
    assert list(Path(profile["run"]["folder"]).iterdir()) == []


def test_nodes_that_are_busy_are_no_fault(
    profile: Profile, runtime_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(before, "WAIT_SECONDS", 1)
    command = ["sbatch", "--parsable", "--exclusive", "--output=/dev/null", "--partition=gpu"]
    busy = subprocess.run(
        [*command, "--wrap=sleep 60"], check=True, capture_output=True, text=True
    ).stdout.strip()
    until(lambda: show_job(busy)[0].state == "RUNNING")
    found = before.check_profile(runtime_config(**profile), on_nodes=True)
    scancel([busy])
    [node] = [check for check in found if check.name == "a trainer node"]
    assert (node.verdict, node.what) == (Verdict.ABSENT, "none was free within 1 s")


def test_after_a_run_that_failed(profile: Profile, submit_run: Callable[..., Run]) -> None:
    run = submit_run({**profile, "model": {"path": "/gone", "context_tokens": 8192}})
    run.ended()
    found = diagnose(run.folder)
    assert [finding.name for finding in found.causes] == ["model-missing"]
    assert found.notes == []


def test_why_a_job_waits(profile: Profile, submit_run: Callable[..., Run]) -> None:
    profile["slurm"]["mode"] = "two-jobs"
    profile["slurm"]["trainer"]["extra"] = ["--hold"]
    run = submit_run(profile)
    [finding] = diagnose(run.folder).causes
    assert (finding.name, finding.where) == ("held", f"slurm job {run.jobs()['train'].id}")
    cancel(run.folder)


def test_without_slurm(
    profile: Profile, runtime_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    [found] = check_cluster(runtime_config(**profile))
    assert found.verdict is Verdict.FAIL
    assert found.what == "sinfo: is not installed here"
