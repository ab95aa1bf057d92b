"""The seam to Apptainer: which program, which ids, and the unpacked images of a node."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from skiff import apptainer
from skiff.apptainer import IdMap, apptainer_root, check_mapped, check_overlay, find_apptainer, own
from skiff.errors import InfraError
from skiff.runtime import rootfs
from skiff.runtime.apptainer_backend import ApptainerBackend
from skiff.runtime.backend import ContainerRequest, ImageNotFoundError, Limits
from skiff.runtime.rootfs import RootFolders

LIMITS = Limits(memory_mib=128, cpus=1, pids=64, disk_mib=64, output_bytes=1 << 16, network=False)


@pytest.fixture
def place() -> Iterator[Path]:
    """A folder that the ids of a sandbox can reach, as pytest's own cannot."""
    folder = Path(tempfile.mkdtemp(prefix="test-", dir=apptainer_root()))
    folder.chmod(0o711)
    yield folder
    subprocess.run(["chmod", "-R", "u+rwX", folder], check=False, capture_output=True)
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir() and path.stat().st_uid != os.getuid():
            path.chmod(0o755)
    subprocess.run(["rm", "-rf", folder], check=True)


@pytest.fixture
def fresh() -> Iterator[None]:
    """What is found out once per process is found out anew."""
    find_apptainer.cache_clear()
    apptainer.id_map.cache_clear()
    yield
    find_apptainer.cache_clear()
    apptainer.id_map.cache_clear()


@pytest.fixture
def image(place: Path) -> Path:
    """A root folder with one busybox."""
    (place / "tiny" / "bin").mkdir(parents=True)
    subprocess.run(["cp", "/bin/busybox", place / "tiny" / "bin"], check=True)
    for name in ("sh", "cat", "mkdir", "rm", "rmdir"):
        (place / "tiny" / "bin" / name).symlink_to("busybox")
    return place / "tiny"


def _below(folder: Path) -> list[str]:
    """Everything in a folder, as relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("words", ["apptainer version 1.0.3", "oops"])
def test_old_program(
    words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    program = tmp_path / "apptainer"
    program.write_text(f"#!/bin/sh\necho {words}\n")
    program.chmod(0o755)
    monkeypatch.setenv("SKIFF_APPTAINER", str(program))
    with pytest.raises(InfraError, match="tools/install-apptainer"):
        find_apptainer()


def test_users_settings_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APPTAINER_BIND", "/etc:/mnt")
    assert not [name for name in apptainer.apptainer_environment() if name.endswith("BIND")]


def test_root_of_somebody_else(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir(mode=0o777)
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setenv("SKIFF_APPTAINER_ROOT", str(tmp_path / "open"))
    with pytest.raises(InfraError, match="nobody else can change"):
        apptainer_root()


def test_where_no_overlay_can_be(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (place / "bin").mkdir(mode=0o755)
    mount = place / "bin" / "mount"
    mount.write_text("#!/bin/sh\necho 'wrong fs type' >&2\nexit 32\n")
    mount.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place / 'bin'}:{os.environ['PATH']}")
    with pytest.raises(InfraError, match=r"wrong fs type[\s\S]*SKIFF_APPTAINER_ROOT"):
        check_overlay(place)
    assert _below(place) == ["bin", "bin/mount"]


def test_folder_that_only_its_owner_can_reach(place: Path) -> None:
    """Root's sandboxes are other ids; an ordinary user's are its own."""
    (place / "closed" / "in").mkdir(parents=True)
    (place / "closed").chmod(0o700)
    refused = pytest.raises(InfraError, match="others can pass")
    with contextlib.nullcontext() if os.getuid() else refused:
        check_overlay(place / "closed" / "in")


def test_words_of_a_failure() -> None:
    with pytest.raises(InfraError, match="exit 3: gone wrong"):
        check_mapped(["sh", "-c", "echo gone wrong >&2; exit 3"])
    with pytest.raises(InfraError, match=r"no end after 0\.1 s"):
        check_mapped(["sleep", "1000"], timeout=0.1)


async def test_with_a_single_id(
    place: Path, image: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    """As inside another image: no id can be mapped but our own."""
    own_id = os.getuid()
    monkeypatch.setattr(
        apptainer, "_candidates", lambda: [IdMap(root=own_id, first=own_id, count=1)]
    )
    backend = ApptainerBackend(uuid.uuid4().hex, place, place)
    await backend.open([])
    request = ContainerRequest("one", str(image), {}, LIMITS)
    container = await backend.start(request)
    command = "mkdir /a && rmdir /a && mkdir /a && cat /proc/self/uid_map"
    done = await container.run(command, timeout=30, cwd="/", stop=asyncio.Event())
    assert done.stdout.split() == [b"0", str(own_id).encode(), b"1"]
    await backend.close()
    assert _below(place / "sandboxes") == []


async def test_unpacked_once_and_removed_when_the_disk_is_full(
    place: Path, image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "roots").mkdir(mode=0o711)
    roots = RootFolders(place / "roots", place)
    one, same = await asyncio.gather(roots.find(str(image)), roots.find(str(image)))
    assert one == same
    assert (one / "bin" / "busybox").exists()
    assert (one / "proc").is_dir()  # the image lacks it
    other = str(shutil.copytree(image, place / "other", symlinks=True))
    monkeypatch.setattr(rootfs, "FREE_SHARE", 1.1)
    monkeypatch.setattr(rootfs, "REST_SECONDS", -1.0)
    link = place / "sandboxes" / "server" / "one" / "image"
    link.parent.mkdir(parents=True)
    link.symlink_to(one)
    two = await roots.find(other)
    assert one.exists()  # a sandbox needs it
    link.unlink()
    (place / "other" / "new").touch()  # that makes it another image
    three = await roots.find(other)
    assert [path.exists() for path in (one, two, three)] == [False, False, True]


async def test_what_a_killed_server_left_is_removed(place: Path) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    half, ours = place / f".unpack-{gone.pid}-x", place / f".unpack-{os.getpid()}-x"
    for folder in (half, ours):
        (folder / "root").mkdir(parents=True)
        own(folder / "root")
        own(folder)
    RootFolders(place, place).sweep()
    assert (half.exists(), ours.exists()) == (False, True)


async def test_broken_image(place: Path, image: Path) -> None:
    (place / "roots").mkdir(mode=0o711)
    roots = RootFolders(place / "roots", place)
    (place / "bad.sif").write_bytes(b"no image")
    with pytest.raises(InfraError, match="apptainer"):
        await roots.find(str(place / "bad.sif"))
    assert [path.name for path in (place / "roots").iterdir() if path.is_dir()] == []
    with pytest.raises(ImageNotFoundError):
        await roots.find("localhost/none:1")


async def test_image_without_shell(place: Path, image: Path) -> None:
    (image / "bin" / "sh").unlink()
    server_id = uuid.uuid4().hex
    backend = ApptainerBackend(server_id, place, place)
    await backend.open([])
    with pytest.raises(InfraError, match="sh"):
        await backend.start(ContainerRequest("one", str(image), {}, LIMITS))
    assert _below(place / "sandboxes") == [server_id]
    await backend.close()
