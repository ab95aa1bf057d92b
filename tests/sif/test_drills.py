"""What goes wrong on a cluster, with both halves from their images and nothing in verl's place: as
tests/slurm/test_drills.py. The trainer gets as far as its first check, or is ended while verl
starts."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from skiff import cli, events
from skiff.config import Config
from skiff.images.sandbox import ensure_sandbox_image
from skiff.launch.slurm import scancel
from skiff.launch.status import status
from skiff.launch.submit import job_ids
from skiff.sandbox import RuntimeClient, SandboxSpec
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.tasks.shell import IMAGE

from ..slurm.runs import (
    STALE,
    UNSHARED,
    Run,
    SlurmTool,
    check_both_give_up,
    interpreter,
    nodes,
    plant_stale,
    submitting,
    until,
)

Section = dict[str, Any]
LEASE_SECONDS = 10.0
START_SECONDS = 300.0  # of a half whose image is unpacked first, where FUSE is closed to users
REAP_SECONDS = 10.0  # by the parents of the dead

pytestmark = pytest.mark.timeout(900)


@pytest.fixture
def submit_run(
    make_config: Callable[..., Config], model: Path, slurm: SlurmTool
) -> Iterator[Callable[..., Run]]:
    """`submit_run(slurm={...}, runtime={...}, ...)`: a run from the images; the other options are
    those of runs.submitting."""
    ensure_sandbox_image()
    with submitting() as submit:

        def call(
            slurm: Section | None = None, runtime: Section | None = None, **options: Any
        ) -> Run:
            config = make_config(
                model={"path": str(model)},
                runtime=runtime or {"host": "0.0.0.0"},
                slurm=nodes() | {"lease_seconds": LEASE_SECONDS} | (slurm or {}),
            )
            return submit(config, **options)

        yield call


@pytest.fixture
def starting(submit_run: Callable[..., Run]) -> Callable[..., Started]:
    """`starting(...)`: a run with a sandbox, while verl starts."""
    return lambda **options: Started(submit_run(**options))


class Started:
    """A run with a sandbox whose verl has brought up Ray, and what there is of it on the nodes."""

    def __init__(self, run: Run) -> None:
        self.run = run
        until(lambda: _ray_is_up(run), START_SECONDS)
        published = run.published()
        self.url = json.loads(published.read_text())["url"]
        asyncio.run(_leave_sandbox(run.config, published.parent))
        self.processes = run.processes()
        self.folders = dict(_folders(run))
        assert set(self.folders) == {"podman", "runtime", "train"}
        assert len(run.containers()) == 1
        assert len(run.leases()) == 2

    def check_gone(self) -> None:
        """Nothing of it is left."""
        self.check_processes()
        assert self.folders_left() == {}
        assert self.run.containers() == []
        assert self.run.leases() == []
        assert self.run.published_now() == []
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{self.url}/health", trust_env=False)

    def check_processes(self) -> None:
        """Those that were there have ended and are reaped."""
        _, left = psutil.wait_procs(self.processes, timeout=REAP_SECONDS)
        assert left == []

    def folders_left(self) -> dict[str, Path]:
        """What still lies on the nodes' disks."""
        return {name: folder for name, folder in self.folders.items() if folder.exists()}


def _commands(run: Run) -> dict[int, list[str]]:
    """pid -> the words of its command, of all that lives on the nodes."""
    found = {}
    for process in run.processes():
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process.pid] = process.cmdline()
    return found


def _ray_is_up(run: Run) -> bool:
    assert not list(run.folder.glob("rendezvous/*/end")), status(run.folder)
    return any("raylet" in Path(words[0]).name for words in _commands(run).values() if words)


def _folders(run: Run) -> Iterator[tuple[str, Path]]:
    """That of podman's socket, and what each half has as /tmp in its image."""
    for pid, words in _commands(run).items():
        if "skiff.runtime.podman_host" in words:
            yield "podman", Path(words[-1]).parent
        for word in words:
            if word.startswith("/opt/skiff/entrypoints/"):
                seen = Path("/proc", str(pid), "root", "tmp")
                [folder] = filter(seen.samefile, Path("/tmp").glob("skiff-*"))
                yield Path(word).name, folder


async def _leave_sandbox(config: Config, meeting: Path) -> None:
    async with RuntimeClient.from_folder(meeting, meeting.parent / "key") as client:
        sandbox = await client.start(SandboxSpec.from_config(config, image=IMAGE))
        await sandbox.run("nohup sleep 1000 >/dev/null 2>&1 &", timeout=30)


def test_a_bare_scancel_leaves_nothing(starting: Callable[..., Started]) -> None:
    started = starting()
    run = started.run
    scancel(list(job_ids(run.folder).values()))
    assert {job.state for job in run.ended().values()} == {"CANCELLED"}
    started.check_gone()
    [finished] = events.read(run.folder, "finished")
    assert (finished["exit_code"], finished["reason"]) == (130, "interrupted")


def test_a_stale_server_is_not_believed_and_a_cancel_ends_in_order(
    starting: Callable[..., Started],
) -> None:
    started = starting(before=plant_stale)
    run = started.run
    assert [event["what"] for event in events.read(run.folder, "stale")] == [STALE]
    assert [path.name for path in run.published_now()] == [run.published().name]
    assert cli.main(["cancel", str(run.folder)]) == 0
    assert {job.state for job in run.ended().values()} == {"CANCELLED"}
    started.check_gone()


def test_a_runtime_node_that_is_lost_ends_the_trainer(
    starting: Callable[..., Started], slurm: SlurmTool
) -> None:
    started = starting(slurm={"mode": "two-jobs"})
    run = started.run
    with slurm.lost("cpu1"):
        until(lambda: run.jobs()["train"].ended)
        ended = run.jobs()["train"]
    assert (ended.state, ended.exit) == ("FAILED", 3)
    sentence = f"runtime half on cpu1: has not renewed its lease for {LEASE_SECONDS:g} s"
    assert sentence in "\n".join(status(run.folder))
    assert sentence in (run.folder / "logs" / f"slurm.{ended.id}.log").read_text()
    started.check_processes()
    run.remove_containers()
    left = started.folders_left()
    assert "train" not in left
    for folder in left.values():  # which a reboot would empty
        shutil.rmtree(folder)


def test_a_half_that_never_starts_ends_the_other(submit_run: Callable[..., Run]) -> None:
    run = submit_run(
        slurm={
            "mode": "two-jobs",
            "wait_seconds": 4.0,
            "trainer": {**nodes()["trainer"], "extra": ["--begin=now+1hour"]},
        }
    )
    check_both_give_up(run, "train half: 0 of 1 nodes have appeared within 4 s")
    assert run.leases() == []


def test_an_unshared_run_folder_is_named(
    submit_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    python = interpreter(tmp_path / "python", f'"{sys.executable}"', UNSHARED)
    monkeypatch.setattr(sys, "executable", python)
    run = submit_run()
    assert {job.exit for job in run.ended().values()} == {3}
    told = "\n".join(status(run.folder))
    assert f"{run.folder}: is not shared: node gpu1 has no run folder there" in told
    assert "set run.folder" in told
    assert run.leases() == []


def test_a_wrong_key_is_refused_at_once(
    submit_run: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = submit_run(runtime_only=True)
    url = json.loads(served.published(seconds=START_SECONDS).read_text())["url"]
    key = tmp_path / "keys" / "key"
    key.parent.mkdir()
    key.touch(mode=0o600)
    key.write_text("of another run\n")
    monkeypatch.setenv(KEY_FILE_VARIABLE, str(key))
    run = submit_run(runtime={"url": url})
    assert run.ended()["train"].exit == 2
    told = "\n".join(status(run.folder))
    assert f"{url}/registry_prefix: the runtime server refuses the key" in told
    assert not list((run.folder / "logs").glob("verl*"))
