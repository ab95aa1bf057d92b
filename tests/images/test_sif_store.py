"""The shared folder of SIF files, with the real Apptainer and podman."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from skiff import cli
from skiff.apptainer import build_sif, own, run_mapped, unpack_sif
from skiff.errors import ImageError, InfraError
from skiff.image_use import LEASE_SECONDS, mark_used, sif_path
from skiff.images.archive import detect
from skiff.images.prune import prune
from skiff.images.pull import Puller
from skiff.images.sif_store import SifStore
from skiff.images.store import find
from skiff.podman import check_podman

pytestmark = pytest.mark.usefixtures("podman_store")
BUSYBOX = Path("/bin/busybox")
SLOW_PULL = """
import sys
from pathlib import Path
from skiff.images.pull import Puller
from skiff.images.sif_store import SifStore

def build(source, target):
    target.write_bytes(b"half")
    print("building", flush=True)
    sys.stdin.readline()
    target.write_bytes(b"whole")

outcome, = Puller(SifStore(Path(sys.argv[1]), build=build)).pull(["registry.invalid/image:1"])
print(outcome.pulled, outcome.error, flush=True)
"""


@pytest.fixture
def cache() -> Iterator[Path]:
    """An empty folder of SIF files, which the ids of a user namespace can reach."""
    folder = Path(tempfile.mkdtemp(prefix="skiff-sif-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def rootfs(cache: Path) -> Path:
    """A root file system that is one busybox."""
    root = cache / "sources" / "root"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy2(BUSYBOX, root / "bin")
    (root / "bin" / "sh").symlink_to("busybox")
    (root / "etc" / "who").write_text("I am the one\n")
    (root / "root").mkdir(mode=0o700)  # only its owner can read it
    return root


def who(sif: Path) -> str:
    """What the file system in a SIF says."""
    with tempfile.TemporaryDirectory(dir=sif.parent) as name:
        folder = Path(name)
        folder.chmod(0o755)
        own(folder)
        unpack_sif(sif, folder / "root")
        said = (folder / "root" / "etc" / "who").read_text()
        run_mapped(["rm", "-rf", "root"], cwd=folder)  # an ordinary user does not own all of it
        return said


def tar(root: Path) -> Path:
    path = root.parent / "root.tar"
    with tarfile.open(path, "w") as archive:
        archive.add(root, ".")
    return path


def write(source: str, target: Path) -> None:
    """Stands in for Apptainer where only the cache is looked at."""
    target.write_text(source)


def test_an_image_of_podmans_store_becomes_a_sif(cache: Path, rootfs: Path) -> None:
    check_podman(["import", "--quiet", str(tar(rootfs)), "localhost/one:1"])
    arguments = ["images", "pull", "--sif", str(cache), "--image", "localhost/one:1"]
    assert cli.main(arguments) == 0
    path = sif_path(cache, "localhost/one:1")
    assert who(path) == "I am the one\n"
    image = find(SifStore(cache), "localhost/one:1")
    assert image is not None
    assert image.size_bytes == path.stat().st_size
    assert image.digest.startswith("sha256:")
    assert list((cache / "partial").iterdir()) == []
    before = path.stat()
    assert cli.main(arguments) == 0
    assert path.stat() == before


@pytest.mark.parametrize("form", ["rootfs", "rootfs-tar", "docker-archive", "oci", "sif"])
def test_it_takes_in(form: str, cache: Path, rootfs: Path) -> None:
    source = rootfs if form == "rootfs" else tar(rootfs)
    if form in ("docker-archive", "oci"):
        check_podman(["import", "--quiet", str(source), "localhost/brought:1"])
        source = cache / "sources" / "image"
        save = ["save", "--quiet", f"--format={form.replace('oci', 'oci-dir')}"]
        check_podman([*save, f"--output={source}", "localhost/brought:1"])
    if form == "sif":
        source = cache / "sources" / "image.sif"
        build_sif(str(rootfs), source)
    assert detect(source).kind.value == form
    assert cli.main(["images", "import", "--sif", str(cache), str(source), "taken/image"]) == 0
    assert who(sif_path(cache, "docker.io/taken/image:latest")) == "I am the one\n"


def test_a_tar_file_does_not_leave_its_folder(cache: Path) -> None:
    path = cache / "evil.tar"
    with tarfile.open(path, "w") as archive:
        for name in ("etc/x", "../../../escaped"):
            archive.addfile(tarfile.TarInfo(name))
    SifStore(cache, build=write).add(detect(path), "evil")
    assert not list(cache.rglob("escaped"))


def test_a_tar_file_that_is_cut_off(cache: Path, rootfs: Path) -> None:
    path = tar(rootfs)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ImageError, match="cannot be unpacked"):
        SifStore(cache, build=write).add(detect(path), "cut")
    assert SifStore(cache).images() == []
    assert list((cache / "partial").iterdir()) == []


def test_where_an_image_comes_from(cache: Path) -> None:
    store = SifStore(cache, build=write)
    store.pull("user/image:1", lambda: None)
    assert sif_path(cache, "user/image:1").read_text() == "docker://docker.io/user/image:1"
    with pytest.raises(ImageError, match="was not built on this machine"):
        store.pull("localhost/nothing:1", lambda: None)


def test_a_failed_conversion_leaves_nothing_and_is_tried_again(cache: Path) -> None:
    tries: list[str] = []

    def build(source: str, target: Path) -> None:
        tries.append(source)
        target.write_bytes(b"half")
        if len(tries) < 3:
            raise InfraError("connection reset")

    store = SifStore(cache, build=build)
    failed = Puller(store, attempts=1).pull(["user/image:1"])[0]
    assert "connection reset" in failed.error
    assert store.images() == []
    assert list((cache / "partial").iterdir()) == []
    assert Puller(store, attempts=2, pause_seconds=0.01).pull(["user/image:1"])[0].pulled


def test_two_nodes_convert_once_and_a_killed_one_is_replaced(cache: Path) -> None:
    first, second, third = (
        subprocess.Popen(
            [sys.executable, "-c", SLOW_PULL, str(cache)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    )
    processes = {process.pid: process for process in (first, second, third)}
    builder = processes.pop(building(cache))
    builder.kill()
    builder.communicate()
    assert SifStore(cache).images() == []
    heir = processes.pop(building(cache, not_pid=builder.pid))
    told, _ = heir.communicate("go\n", timeout=60)
    assert told == "building\nTrue \n"
    (last,) = processes.values()
    told, _ = last.communicate(timeout=60)
    assert told == "False \n"
    (path,) = cache.glob("*.sif")
    assert path.read_bytes() == b"whole"
    assert list((cache / "partial").iterdir()) == []


def building(cache: Path, not_pid: int = 0) -> int:
    """The process that has begun to build, once there is one."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        pids = {int(path.parent.name.split("~")[2]) for path in cache.glob("partial/*/made.sif")}
        if pids - {not_pid}:
            return pids.pop()
        time.sleep(0.02)
    raise AssertionError("nobody builds")


def test_an_image_in_use_stays(cache: Path) -> None:
    store = SifStore(cache, build=write)
    for name in ("a", "b"):
        store.pull(f"user/{name}", lambda: None)
    assert [image.sandboxes for image in store.images()] == [None, None]
    assert prune(store, max_bytes=0) == []
    for name in ("a", "b"):
        mark = next((cache / "last-use").glob(f"*__{name}:latest"))
        os.utime(mark, (time.time() - LEASE_SECONDS - 10,) * 2)
    a, b = store.images()
    assert (a.sandboxes, b.sandboxes) == (0, 0)
    mark_used(cache, "user/b")
    assert store.remove(b) is False
    assert prune(store, max_bytes=0) == [a]
    assert {path.name for path in cache.glob("*.sif*")} == {
        "docker.io__user__b:latest.sif",
        "docker.io__user__b:latest.sif.json",
    }


def test_a_folder_that_cannot_be_made(cache: Path) -> None:
    (cache / "file").touch()
    with pytest.raises(InfraError, match="cannot be made"):
        SifStore(cache / "file" / "folder")


def test_a_full_disk_fails_one_image_and_not_the_pull(cache: Path) -> None:
    def build(source: str, target: Path) -> None:
        if "large" in source:
            raise OSError(errno.ENOSPC, "No space left on device")
        target.write_text(source)

    failed, good = sorted(
        Puller(SifStore(cache, build=build)).pull(["user/large", "user/small"]),
        key=lambda outcome: outcome.pulled,
    )
    assert "No space left" in failed.error
    assert good.pulled


def test_a_damaged_sidecar_is_one_error(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = SifStore(cache, build=write)
    store.pull("user/image", lambda: None)
    sif_path(cache, "user/image").with_suffix(".sif.json").write_text("{}")
    assert cli.main(["images", "list", "--sif", str(cache)]) == 2
    assert "is not what Skiff writes" in " ".join(capsys.readouterr().err.split())


def test_files_of_others_are_not_ours(cache: Path) -> None:
    (cache / "mine.sif").write_bytes(b"x")
    store = SifStore(cache, build=write)
    assert store.images() == []
    assert prune(store, max_bytes=0, older_than=0) == []
    assert (cache / "mine.sif").exists()


def test_a_pinned_image_comes_from_podmans_store(cache: Path, registry: Any) -> None:
    name = registry.add("image")
    check_podman(["pull", "--quiet", "--tls-verify=false", name])
    store = SifStore(cache, build=write)
    pinned = f"{name.removesuffix(':1')}@{registry.digest(name)}"
    assert Puller(store).pull([pinned])[0].pulled
    assert "docker-archive" in sif_path(cache, pinned).read_text()
