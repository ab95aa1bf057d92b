"""Both halves at work inside their images, with the programs of the host."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff import events
from skiff.config import Config
from skiff.config.load import parse_config
from skiff.images.archive import detect
from skiff.images.sandbox import ensure_sandbox_image, sandbox_recipe, sandbox_rootfs
from skiff.images.sif_store import SifStore
from skiff.launch import local, run_folder
from skiff.sandbox import RuntimeClient, SandboxSpec
from skiff.tasks import shell
from skiff.train import tiny

pytestmark = pytest.mark.timeout(1200)


@pytest.fixture
def make_config(sif: Callable[[str], Path], tmp_path: Path) -> Callable[..., Config]:
    """`make_config(runtime={...})`: one small step, both halves from images."""

    def make(**sections: dict[str, Any]) -> Config:
        data: dict[str, dict[str, Any]] = {
            "run": {"name": "sif", "folder": str(tmp_path / "runs")},
            "model": {"path": "none", "context_tokens": 6144},
            "tasks": {
                "train": ["shell:train"],
                "validation": ["shell:validation"],
                "train_limit": 4,
                "validation_limit": 2,
            },
            "rollout": {
                "trajectories_per_prompt": 2,
                "prompts_per_step": 2,
                "prompt_tokens": 5120,
                "response_tokens": 512,
            },
            "agent": {"max_turns": 2, "turn_tokens": 24, "command_seconds": 10},
            "images": {"runtime": str(sif("runtime")), "trainer": str(sif("trainer-cpu"))},
            "train": {"steps": 1, "validate_first": False},
            "hardware": {
                "platform": "cpu",
                "dtype": "float32",
                "micro_batch": 4,
                "engine_cache_gib": 1,
            },
        }
        for name, values in sections.items():
            data.setdefault(name, {}).update(values)
        return parse_config(data)

    return make


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


def test_a_step_of_training(make_config: Callable[..., Config], tmp_path: Path) -> None:
    """verl's main_ppo, vLLM and Ray inside trainer-cpu; sandboxes by the server in runtime."""
    ensure_sandbox_image()
    folder = tmp_path / "model"
    texts = [
        part
        for task in shell.tasks("train")[:64]
        for part in (task.prompt, *(file.content for file in task.files))
    ]
    tokenizer = tiny.make_tokenizer(folder, texts)
    tiny.make_model(folder, tokenizer, layers=2, hidden=64, context_tokens=6144)
    config = make_config(model={"path": str(folder)})
    run_dir = run_folder.make(config)
    attempt = run_folder.new_attempt(run_dir)
    local.run_attempt(config, run_dir, attempt, watch=lambda: None)
    steps = [event["step"] for event in events.read(run_dir, "step")]
    assert steps == [1]
    trained = [event for event in events.read(run_dir, "trajectory") if event["split"] == "train"]
    assert len(trained) == 4
    assert all(event["stop"] != "infra" for event in trained)
    assert (run_dir / "model" / "policy" / "config.json").is_file()
