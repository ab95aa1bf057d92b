"""What goes wrong on a cluster, each with its right end and sentence, on a real Slurm with the real
runtime half. Where the trainer must run for a while, a small program stands in for it."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from skiff import cli, events
from skiff.launch.slurm import scancel
from skiff.launch.status import status
from skiff.launch.submit import job_ids
from skiff.podman import podman_run_dir
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.tasks.shell import IMAGE

from .runs import (
    STALE,
    UNSHARED,
    Run,
    SlurmTool,
    check_both_give_up,
    plant_stale,
    processes_of,
    until,
)

Profile = dict[str, dict[str, Any]]
Submit = Callable[..., Run]
StandIn = Callable[..., None]
LEASE_SECONDS = 6.0

# Starts a sandbox by the real server, says so in the file `sandbox`, and waits for its end.
TRAINER = f"""
import asyncio, pathlib, signal, sys, time
from skiff.config import load_run_config
from skiff.sandbox import RuntimeClient, SandboxSpec

options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
config_file = pathlib.Path(options["--config"])
key = config_file.parent / "rendezvous" / "key"
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))

async def main():
    spec = SandboxSpec.from_config(load_run_config(config_file), image={IMAGE!r})
    async with RuntimeClient.from_folder(pathlib.Path(options["--rendezvous"]), key) as client:
        sandbox = await client.start(spec)
        await sandbox.run("nohup sleep 1000 >/dev/null 2>&1 &", timeout=30)
        (config_file.parent / "sandbox").touch()
        time.sleep(600)

asyncio.run(main())
"""


@pytest.fixture
def short(profile: Profile) -> Profile:
    """The profile with short leases."""
    profile["slurm"] |= {"lease_seconds": LEASE_SECONDS, "wait_seconds": 60.0}
    return profile


@pytest.fixture
def training(
    short: Profile, submit_run: Submit, stand_in: StandIn, debian_image: str
) -> Callable[..., Run]:
    """`training(mode="het")`: a run whose trainer has a sandbox."""

    def call(mode: str = "het", **options: Any) -> Run:
        stand_in(TRAINER)
        short["slurm"]["mode"] = mode
        run = submit_run(short, **options)
        until(lambda: (run.folder / "sandbox").exists())
        assert len(run.containers()) == 1
        return run

    return call


@pytest.mark.parametrize("how", ["scancel", "skiff cancel"])
def test_a_cancelled_run_leaves_nothing(training: Callable[..., Run], how: str) -> None:
    run = training()
    place = json.loads(run.published().read_text())
    assert len(run.leases()) == 2
    if how == "scancel":
        scancel(list(job_ids(run.folder).values()))
    else:
        assert cli.main(["cancel", str(run.folder)]) == 0
    jobs = run.ended()  # no process, no container
    assert {job.state for job in jobs.values()} == {"CANCELLED"}
    assert run.leases() == []
    assert not run.published_now()
    assert not (podman_run_dir() / f"serve-{place['pid']}").exists()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{place['url']}/health", trust_env=False)
    [finished] = events.read(run.folder, "finished")
    assert finished["exit_code"] == 130


@pytest.mark.parametrize(
    ("lost", "other"), [("runtime", "train"), ("train", "runtime")], ids=["runtime", "train"]
)
def test_a_half_whose_partner_is_gone_ends(
    training: Callable[..., Run], slurm: SlurmTool, lost: str, other: str
) -> None:
    node = {"runtime": "cpu1", "train": "gpu1"}[lost]
    run = training("two-jobs")
    with slurm.lost(node):
        until(lambda: run.jobs()[other].ended)
        ended = run.jobs()[other]
    if lost == "runtime":
        run.remove_containers()
    assert run.containers() == []
    assert (ended.state, ended.exit) == ("FAILED", 3)
    sentence = f"{lost} half on {node}: has not renewed its lease for 6 s"
    assert sentence in "\n".join(status(run.folder))
    assert sentence in (run.folder / "logs" / f"slurm.{ended.id}.log").read_text()


def test_a_node_that_slurm_takes_down_ends_the_job(training: Callable[..., Run]) -> None:
    run = training()
    down = ["scontrol", "update", "nodename=gpu1", "state=down", "reason=drill"]
    subprocess.run(down, check=True)
    try:
        jobs = run.ended()
    finally:
        back = ["scontrol", "update", "nodename=gpu1", "state=resume"]
        subprocess.run(back, check=False)  # it may have registered itself
        idle = ["sinfo", "--noheader", "--nodes=gpu1", "--format=%T"]
        until(lambda: subprocess.check_output(idle, text=True) == "idle\n")
    assert jobs["train"].state == "NODE_FAIL"
    assert run.leases() == []


def test_a_half_that_is_killed_is_the_cause(training: Callable[..., Run]) -> None:
    run = training("two-jobs")
    [half] = [
        process
        for process in psutil.process_iter(["cmdline"])
        if {"skiff.launch.half", "runtime", str(run.folder)} <= set(process.info["cmdline"] or [])
        and process.name() != "srun"
    ]
    half.kill()
    jobs = run.ended()
    assert {half: job.exit for half, job in jobs.items()} == {"runtime": 137, "train": 137}
    assert "the runtime half ended with exit code 137" in "\n".join(status(run.folder))


def test_a_stale_server_is_not_believed(training: Callable[..., Run]) -> None:
    run = training(before=plant_stale)
    [event] = events.read(run.folder, "stale")
    assert event["what"] == STALE
    log = run.folder / "logs" / f"slurm.{run.jobs()['train'].id}.log"
    assert STALE in (log if log.exists() else next(log.parent.glob("slurm.*"))).read_text()
    assert [path.name for path in run.published().parent.glob("runtime-*.json")] == [
        run.published().name
    ]


def test_a_half_does_not_wait_for_ever(short: Profile, submit_run: Submit) -> None:
    short["slurm"] |= {"mode": "two-jobs", "wait_seconds": 2.0}
    short["slurm"]["trainer"]["extra"] = ["--begin=now+1hour"]
    run = submit_run(short)
    check_both_give_up(run, "train half: 0 of 1 nodes have appeared within 2 s")


def test_an_unshared_run_folder_is_named(
    short: Profile, submit_run: Submit, stand_in: StandIn
) -> None:
    stand_in(TRAINER, shell=UNSHARED)
    run = submit_run(short)
    jobs = run.ended()
    assert {job.exit for job in jobs.values()} == {3}
    sentence = f"{run.folder}: is not shared: node gpu1 has no run folder there"
    told = "\n".join(status(run.folder))
    assert sentence in told
    assert "set run.folder" in told


def test_a_wrong_key_is_refused_at_once(
    short: Profile, submit_run: Submit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = submit_run(short, runtime_only=True)
    url = json.loads(served.published().read_text())["url"]
    key = tmp_path / "key"
    key.write_text("of another run\n")
    key.chmod(0o600)
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key))
    run = submit_run({**short, "runtime": {"url": url}})
    jobs = run.ended()
    assert jobs["train"].exit == 2
    assert f"{url}/registry_prefix: the runtime server refuses the key" in "\n".join(
        status(run.folder)
    )
    assert not list((run.folder / "logs").glob("verl*"))
    assert processes_of(run.folder) == []
