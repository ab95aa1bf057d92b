"""The store and the one seam where podman is started, with the real program."""

from __future__ import annotations

import asyncio
import errno
import os
from pathlib import Path

import psutil
import pytest
from skiff import podman
from skiff.errors import InfraError
from skiff.runtime import podman_backend
from skiff.runtime.backend import ContainerRequest, Limits, SandboxEndedError
from skiff.runtime.podman_backend import PodmanBackend


def test_nothing_of_the_users_own_podman(debian_image: str) -> None:
    """A bare podman of the same user sees none of our images."""
    assert podman.image_exists(debian_image)
    environment = podman.podman_environment()
    for name in ("CONTAINERS_CONF", "CONTAINERS_STORAGE_CONF"):
        assert Path(environment[name]).parent == podman.podman_root()
    store = podman.check_podman(["info", "--format", "{{.Store.GraphRoot}}"]).decode().strip()
    assert Path(store) == podman.podman_root() / "storage"


def test_run_folder_is_private() -> None:
    found = podman.podman_run_dir()
    assert found.stat().st_mode & 0o066 == 0
    assert len(str(found)) < 40  # sockets below it must fit into 107 bytes


def test_run_folder_of_somebody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIFF_PODMAN_ROOT", str(tmp_path))
    folder = podman.podman_run_dir()
    try:
        folder.chmod(0o777)
        with pytest.raises(InfraError, match="nobody else"):
            podman.podman_run_dir()
    finally:
        folder.rmdir()


def test_store_that_mapped_ids_cannot_reach(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    with pytest.raises(InfraError, match=r"chmod o\+x"):
        podman._check_passable(tmp_path)


def test_no_oci_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(podman, "OCI_RUNTIMES", ("skiff-no-such", "false"))
    with pytest.raises(InfraError) as caught:
        podman._working_oci_runtime(podman.podman_environment(), podman.podman_run_dir())
    assert "skiff-no-such: not installed; false: " in caught.value.what


def test_podmans_own_words() -> None:
    with pytest.raises(InfraError, match=r"podman image.*localhost/skiff/none"):
        podman.check_podman(["image", "inspect", "localhost/skiff/none:1"])
    assert podman.image_exists("localhost/skiff/none:1") is False


def test_timeout() -> None:
    with pytest.raises(InfraError, match=r"no end after 0\.001 s"):
        podman.run_podman(["info"], timeout=0.001)


def test_build(debian_image: str, tmp_path: Path) -> None:
    name = "localhost/skiff/test-build:1"
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(
        f"FROM {debian_image}\nARG WORD\nRUN echo $WORD > /word; ls /sys/class/net"
    )
    try:
        podman.build(tmp_path, name, build_args={"WORD": "hello"})
        run = ["run", "--rm", "--network=none", *podman.isolation().arguments(), name]
        assert podman.check_podman([*run, "cat", "/word"]) == b"hello\n"
    finally:
        podman.run_podman(["image", "rm", "--force", name])
    dockerfile.write_text(f"FROM {debian_image}\nRUN echo broken >&2; exit 3")
    with pytest.raises(InfraError, match="broken"):
        podman.build(tmp_path, name)
    dockerfile.write_text("FROM localhost/skiff/none:1")
    with pytest.raises(InfraError, match="none:1"):
        podman.build(tmp_path, name)


async def test_a_start_outlives_a_store_that_takes_no_mark(
    busybox_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a full disk: when an image was last used is worth less than the sandbox."""

    def full(store: Path, image: str) -> None:
        raise OSError(errno.ENOSPC, "no space left on device")

    monkeypatch.setattr(podman_backend, "mark_used", full)
    backend = PodmanBackend("test-mark")
    await backend.open(known=())
    try:
        limits = Limits(memory_mib=64, cpus=1, pids=32, disk_mib=64, output_bytes=99, network=False)
        container = await backend.start(
            ContainerRequest("skiff-test-mark", busybox_image, {}, limits)
        )
        done = await container.run("echo on", timeout=30, cwd="/", stop=asyncio.Event())
        assert done.stdout == b"on\n"
    finally:
        await backend.close()


async def test_whose_end_it_was(busybox_image: str) -> None:
    """Memory that the sandbox has used up is its own end; a monitor that is killed is not."""
    limits = Limits(memory_mib=32, cpus=1, pids=32, disk_mib=64, output_bytes=99, network=False)
    requests = [ContainerRequest(f"skiff-test-end{n}", busybox_image, {}, limits) for n in (1, 2)]
    backend = PodmanBackend("test-end")
    await backend.open(known=())
    try:
        full, watched = [await backend.start(request) for request in requests]
        attack = "head -c 60m /dev/zero >/dev/shm/full; head -c 60m /dev/zero | tail >/dev/null"
        while full.end is None:
            await full.run(attack, timeout=30, cwd="/", stop=asyncio.Event())
        with pytest.raises(SandboxEndedError, match="out of memory"):
            await backend.adopt(requests[0])
        monitor = psutil.Process(await watched.first_pid()).parent()
        assert monitor is not None
        monitor.kill()
        with pytest.raises(InfraError):
            await watched.run("echo never", timeout=30, cwd="/", stop=asyncio.Event())
    finally:
        await backend.close()
