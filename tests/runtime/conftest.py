"""Images and helpers for the server's tests."""

from __future__ import annotations

import io
import os
import subprocess
import tarfile
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from skiff.apptainer import apptainer_root, build_sif
from skiff.config import Config
from skiff.podman import build, check_podman, image_exists, import_rootfs
from skiff.runtime.podman_backend import LABEL
from skiff.sandbox import RuntimeClient, Sandbox, SandboxSpec

MAKE_BUSYBOX = Path(__file__).parents[2] / "tools" / "musl-busybox"
BUSYBOX_IMAGE = "localhost/skiff/test-busybox:musl"
PLAIN_IMAGE = "localhost/skiff/test-plain:1"
Images = dict[str, str]


@pytest.fixture(scope="session")
def busybox_image(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image that is one static busybox, linked with musl: no bash, no other library."""
    if not image_exists(BUSYBOX_IMAGE):
        folder = tmp_path_factory.mktemp("busybox")
        made = subprocess.run([MAKE_BUSYBOX, folder / "busybox"], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
        tar = folder / "root.tar"
        _write_busybox_rootfs(folder / "busybox", tar)
        import_rootfs(tar, BUSYBOX_IMAGE, changes=["ENV GREETING=hello"])
    return BUSYBOX_IMAGE


def _write_busybox_rootfs(busybox: Path, tar: Path) -> None:
    applets = subprocess.run([busybox, "--list"], check=True, capture_output=True, text=True)
    with tarfile.open(tar, "w") as archive:
        for name in ("bin", "etc", "root", "tmp"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(folder)
        archive.add(busybox, "bin/busybox")
        for applet in sorted({*applets.stdout.split()} - {"busybox"}):
            link = tarfile.TarInfo(f"bin/{applet}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            archive.addfile(link)
        passwd = b"root:x:0:0:root:/root:/bin/sh\n"
        entry = tarfile.TarInfo("etc/passwd")
        entry.size = len(passwd)
        archive.addfile(entry, io.BytesIO(passwd))


@pytest.fixture(scope="session")
def plain_image(debian_image: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Debian without bash and setsid, whose user is not root."""
    if not image_exists(PLAIN_IMAGE):
        context = tmp_path_factory.mktemp("plain")
        (context / "Dockerfile").write_text(
            f"FROM {debian_image}\n"
            "RUN mkdir /home/agent && chown 1000:1000 /home/agent && rm /bin/bash /usr/bin/setsid\n"
            "USER 1000:1000\n"
        )
        build(context, PLAIN_IMAGE)
    return PLAIN_IMAGE


@pytest.fixture(scope="session")
def images(debian_image: str, busybox_image: str, plain_image: str) -> Images:
    """The images by name."""
    return {"debian": debian_image, "busybox": busybox_image, "plain": plain_image}


@pytest.fixture(params=["podman", "apptainer"])
def backend(request: pytest.FixtureRequest) -> str:
    """A kind of back end, as `runtime.backend` names it."""
    kind: str = request.param
    return kind


@pytest.fixture(scope="session")
def images_of(images: Images) -> Callable[[str], Images]:
    """`images_of(kind)`: the images as a kind of back end names them; Apptainer's are made of
    podman's (one SIF, two root folders)."""

    def named(kind: str) -> Images:
        if kind == "podman":
            return images
        folder = apptainer_root() / "test-images"
        folder.mkdir(mode=0o755, exist_ok=True)
        return {key: _for_apptainer(folder, name, key == "busybox") for key, name in images.items()}

    return named


def _for_apptainer(folder: Path, image: str, as_sif: bool) -> str:
    """Make the image of podman's store one of Apptainer's, once; its path."""
    digest = check_podman(["image", "inspect", "--format", "{{.Id}}", image]).decode().strip()[:12]
    target = folder / (f"{digest}.sif" if as_sif else digest)
    if target.exists():
        return str(target)
    if as_sif:
        archive = folder / f"{digest}.tar"
        check_podman(["save", "--format=docker-archive", f"--output={archive}", image])
        archive.chmod(0o644)
        build_sif(f"docker-archive:{archive}", target)
        archive.unlink()
        return str(target)
    half = folder / f"{digest}.{os.getpid()}"
    half.mkdir()
    name = f"skiff-export-{uuid.uuid4().hex}"
    check_podman(["create", f"--name={name}", image, "sh"])
    content = check_podman(["export", name])
    check_podman(["rm", name])
    subprocess.run(["tar", "-x", "-C", half], input=content, check=True)
    half.rename(target)
    return str(target)


@pytest.fixture(scope="session")
def make_spec(runtime_config: Callable[..., Config]) -> Callable[..., SandboxSpec]:
    """`make_spec(image, config=..., workdir=..., env=..., memory_mib=64)`: small limits."""

    def make(
        image: str,
        *,
        config: Config | None = None,
        workdir: str = "/",
        env: Any = None,
        **limits: Any,
    ) -> SandboxSpec:
        small = {"memory_mib": 128, "pids": 64, "disk_mib": 128, **limits}
        config = config or runtime_config(sandbox=small)
        return SandboxSpec.from_config(config, image=image, workdir=workdir, env=env or {})

    return make


Opened = Callable[..., AbstractAsyncContextManager[Sandbox]]


@pytest.fixture
def opened(runtime_client: RuntimeClient, make_spec: Callable[..., SandboxSpec]) -> Opened:
    """`async with opened(image, ...) as sandbox`: a sandbox of the shared server."""

    @asynccontextmanager
    async def open_one(image: str, **options: Any) -> AsyncIterator[Sandbox]:
        async with runtime_client.sandbox(make_spec(image, **options)) as sandbox:
            yield sandbox

    return open_one


@pytest.fixture(scope="session")
def containers_of() -> Callable[[Path], list[str]]:
    """`containers_of(folder)`: ids of the containers of the server whose run folder it is."""

    def listed(folder: Path) -> list[str]:
        server_id = (folder / "runtime" / "server_id").read_text()
        wanted = f"label={LABEL}={server_id}"
        return check_podman(["ps", "--all", "--quiet", "--filter", wanted]).decode().split()

    return listed
