"""Both halves at work inside their images, with the programs of the host."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from skiff import events
from skiff.config import Config
from skiff.images.archive import detect
from skiff.images.sandbox import ensure_sandbox_image, sandbox_recipe, sandbox_rootfs
from skiff.images.sif_store import SifStore
from skiff.launch import local, run_folder
from skiff.sandbox import RuntimeClient, SandboxSpec
from skiff.tasks import shell
from skiff.train.data import TASKS

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize("backend", ["podman", "apptainer"])
def test_the_server_in_the_image_serves_a_sandbox(
    make_config: Callable[..., Config], common: Path, backend: str
) -> None:
    if backend == "podman":
        ensure_sandbox_image()
        config = make_config()
    else:
        sifs = common / "sifs"
        SifStore(sifs).add(detect(sandbox_rootfs(sandbox_recipe())), shell.IMAGE)
        config = make_config(runtime={"backend": backend, "sif_folder": str(sifs)})

    async def use(server: local.RunningServer) -> None:
        async with RuntimeClient([server.url], server.key) as client:
            spec = SandboxSpec.from_config(config, image=shell.IMAGE)
            async with client.sandbox(spec) as sandbox:
                await sandbox.write("/tmp/told", b"by the image\n")
                done = await sandbox.run("id -u; cat /tmp/told; ls /opt", timeout=30)
                assert (done.exit_code, done.stdout) == (0, b"0\nby the image\n")

    with local.runtime_server(config) as server:
        asyncio.run(use(server))


def as_a_hub_keeps_it(model: Path, cache: Path) -> Path:
    """A snapshot of the model: links to files beside it."""
    (cache / "snapshots" / "a").mkdir(parents=True)
    shutil.copytree(model, cache / "blobs")
    for file in (cache / "blobs").iterdir():
        (cache / "snapshots" / "a" / file.name).symlink_to(Path("../../blobs", file.name))
    return cache / "snapshots" / "a"


def test_a_step_of_training(
    make_config: Callable[..., Config], model: Path, tmp_path: Path
) -> None:
    """verl's main_ppo, vLLM and Ray inside trainer-cpu; sandboxes by the server in runtime."""
    ensure_sandbox_image()
    skip = tmp_path / "skip"
    skip.write_text(f"{shell.tasks('train')[0].id} is not wanted\n")
    snapshot = as_a_hub_keeps_it(model, tmp_path / "cache")
    config = make_config(model={"path": str(snapshot)}, tasks={"skip_list": str(skip)})
    run_dir = run_folder.make(config)
    attempt = run_folder.new_attempt(run_dir)
    local.run_attempt(config, run_dir, attempt, watch=lambda: None)
    steps = [event["step"] for event in events.read(run_dir, "step")]
    assert steps == [1]
    trained = [event for event in events.read(run_dir, "trajectory") if event["split"] == "train"]
    assert len(trained) == 4
    assert all(event["stop"] != "infra" for event in trained)
    assert (run_dir / "model" / "policy" / "config.json").is_file()
    told = (run_dir / "attempts" / "01" / "verl.txt").read_text().splitlines()
    assert 'actor_rollout_ref.model.path="/skiff/model"' in told
    assert f'+skiff.model="{snapshot}"' in told
    tasks = (run_dir / "data" / TASKS).read_text()
    assert shell.tasks("train")[0].id not in tasks
