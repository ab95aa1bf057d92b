"""A sandbox that is ended by what ran in it: the agent's failure, never the machinery's."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest
from skiff.config import Config
from skiff.sandbox import RuntimeClient, Sandbox, SandboxSpec
from skiff.sandbox.client import ENDED
from skiff.tasks import shell
from skiff.tasks.lifecycle import extract_patch, grade, prepare

SECONDS = 60.0
# No process holds this memory, so at last the first one is killed for it.
FILL_MEMORY = "head -c 60m /dev/zero >/dev/shm/full; head -c 60m /dev/zero | tail >/dev/null"


async def end_by_memory(sandbox: Sandbox) -> None:
    deadline = time.monotonic() + SECONDS
    while b"sandbox ended" not in (await sandbox.run(FILL_MEMORY, timeout=SECONDS)).stderr:
        assert time.monotonic() < deadline


async def test_every_call_says_so(
    runtime_server: Any, runtime_client: RuntimeClient, opened: Any, busybox_image: str
) -> None:
    async with opened(busybox_image, memory_mib=32) as sandbox:
        await end_by_memory(sandbox)
        for closed in (False, True):
            done = await sandbox.run("echo never", timeout=SECONDS)
            assert done.exit_code == ENDED
            assert done.text.startswith("sandbox ended: the container has ended")
            assert done.text.endswith("out of memory)")
            with pytest.raises(OSError, match="sandbox ended"):
                await sandbox.read("/etc/passwd")
            with pytest.raises(OSError, match="sandbox ended"):
                await sandbox.write("/etc/passwd", b"")
            deadline = time.monotonic() + SECONDS
            while not closed and (await runtime_client.health())["sandboxes"]["ready"]:
                assert time.monotonic() < deadline  # the server notices and closes its port
    async with httpx.AsyncClient(trust_env=False) as scraper:
        headers = {"Authorization": f"Bearer {runtime_server.key}"}
        text = (await scraper.get(f"{runtime_server.url}/metrics", headers=headers)).text
    assert 'skiff_ended_total{cause="sandbox"}' in text


async def test_it_is_graded(
    runtime_client: RuntimeClient, sandbox_config: Config, runtime_config: Any
) -> None:
    """No patch is to be had, and without one the task is not solved."""
    task = shell.tasks("validation")[0]
    small = runtime_config(sandbox={"memory_mib": 48})
    spec = SandboxSpec.from_config(small, image=task.image, workdir=task.workdir)
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await end_by_memory(sandbox)
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert patch == b""
    whole = SandboxSpec.from_config(sandbox_config, image=task.image, workdir=task.workdir)
    result = await grade(runtime_client, whole, task, patch, timeout=SECONDS)
    assert result.reward == 0.0
