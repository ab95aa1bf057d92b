"""A store of podman that is damaged between two servers, with the real program."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff.errors import InfraError
from skiff.mounts import check_local, filesystem
from skiff.podman import check_podman, end_pause_process, import_rootfs, podman_run_dir
from skiff.podman_repair import DATABASES, repair_store
from skiff.sandbox import RuntimeClient

IMAGE = "localhost/skiff/test-repair:1"
MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:31 / /home rw shared:5 - nfs4 server:/home rw
31 30 0:32 / /home/a\\040b rw - tmpfs tmpfs rw
32 22 0:33 / /scratch rw - tmpfs tmpfs rw
33 22 0:34 / /scratch rw - lustre 10.0.0.1@tcp:/scratch rw
"""


@pytest.fixture
def store(busybox_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A store of its own that holds one image."""
    tar = tmp_path / "image.tar"
    name = f"skiff-test-{os.getpid()}"
    check_podman(["create", f"--name={name}", busybox_image, "sh"])
    check_podman(["export", f"--output={tar}", name])
    check_podman(["rm", name])
    with tempfile.TemporaryDirectory(prefix="skiff-", dir="/var/tmp") as folder:
        root = Path(folder, "store")
        Path(folder).chmod(0o755)
        monkeypatch.setenv("SKIFF_PODMAN_ROOT", str(root))
        import_rootfs(tar, IMAGE)
        yield root
        check_podman(["rm", "--all", "--force"])
        check_podman(["image", "rm", "--all", "--force"])
        end_pause_process()
        shutil.rmtree(podman_run_dir(), ignore_errors=True)


def cut(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(5000)


def scribble(path: Path) -> None:
    path.write_bytes(b"nonsense" * 10_000)


def spoil_pages(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(b"\xff" * 6 * 4096)


@pytest.mark.parametrize("damage", [cut, scribble, spoil_pages])
async def test_database_that_is_damaged(
    damage: Callable[[Path], None],
    store: Path,
    launch_server: Any,
    sandbox_config: Any,
    make_spec: Any,
) -> None:
    server = launch_server(sandbox_config)
    async with RuntimeClient([server.url], server.key) as client:
        sandbox = await client.start(make_spec(IMAGE))
        assert processes_of(sandbox.runtime_id)
        server.end(signal.SIGKILL)
        (database,) = [store / "storage" / n for n in DATABASES if (store / "storage" / n).exists()]
        damage(database)
        server = launch_server(sandbox_config)
    assert "is now" in server.log.read_text()
    assert list(database.parent.glob(f"{database.name}.damaged-*"))
    assert not processes_of(sandbox.runtime_id)
    async with RuntimeClient([server.url], server.key) as client:
        with pytest.raises(InfraError, match="its container is gone"):
            await client.reattach(sandbox.session_id)
        async with client.sandbox(make_spec(IMAGE)) as fresh:
            assert (await fresh.run("echo on", timeout=60)).text == "on\n"
    assert server.end() == 0
    assert check_podman(["ps", "--all", "--external", "--quiet"]) == b""


def processes_of(container: str) -> list[str]:
    """Command lines of the monitors of a container."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            found.append(path.read_text(errors="replace"))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return [line for line in found if container in line and "conmon" in line]


def test_repair_in_podmans_words(tmp_path: Path) -> None:
    """`system migrate` is called when podman asks for it, once, and only then."""
    storage = tmp_path / "storage"
    storage.mkdir()
    calls: list[str] = []

    def podman(arguments: Any) -> subprocess.CompletedProcess[bytes]:
        calls.append(" ".join(arguments))
        lost = b"invalid internal status, try resetting the pause process with "
        lost += b'"podman system migrate": could not find any running process'
        healed = "system migrate" in calls or arguments[0] == "system"
        return subprocess.CompletedProcess(arguments, 0 if healed else 125, b"", lost)

    repair_store(podman, storage, tmp_path)
    assert calls.count("system migrate") == 1
    repair_store(podman, storage, tmp_path)
    assert calls.count("system migrate") == 1


def test_what_cannot_be_repaired(tmp_path: Path) -> None:
    storage = tmp_path / "storage"
    storage.mkdir()

    def podman(arguments: Any) -> subprocess.CompletedProcess[bytes]:
        return subprocess.CompletedProcess(arguments, 125, b"", b"Error: the disk is on fire\n")

    with pytest.raises(InfraError, match=r"the disk is on fire\n  -> end its containers"):
        repair_store(podman, storage, tmp_path)


def test_filesystem_of_a_path(tmp_path: Path) -> None:
    table = tmp_path / "mountinfo"
    table.write_text(MOUNTINFO)
    for path, kind in {
        "/var/lib": "ext4",
        "/home/somebody": "nfs4",
        "/home/a b/c": "tmpfs",
        "/scratch/x": "lustre",
    }.items():
        assert filesystem(Path(path), table) == kind


def test_network_file_system_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = tmp_path / "mountinfo"
    table.write_text("22 1 0:31 / / rw - nfs4 server:/ rw\n")
    monkeypatch.setattr("skiff.mounts.MOUNTS", table)
    with pytest.raises(InfraError, match=r"lies on nfs4, not on a local disk\n  -> set it"):
        check_local(tmp_path, remedy="set it")
