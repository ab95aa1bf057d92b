"""Building the SIFs: a definition, a lock and an interpreter in; one file that can be proved out.

Nothing needs root, Docker or a registry, nor subordinate ids beyond mmdebstrap's: Apptainer carries
the definition out in a namespace of one id, and no file of an image belongs to anybody else. The
tree is then freed of what depends on time and place, squashed, and put into the SIF with its lock,
its bill of materials and a manifest. A SIF that was made of the same inputs is not made again.

Not covered: other architectures than this host's; bases that are no Debian.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.status import Status
from rich.text import Text
from uv import find_uv_bin

from skiff.apptainer import build_tree, inspect_tree
from skiff.errors import ImageError
from skiff.files import write_atomic
from skiff.images.debian import host_acquire, host_mirrors, read_recipe, rootfs
from skiff.images.definitions import (
    BASE_TOML,
    DEBIAN_LOCK,
    ROOT,
    Image,
    build_key,
    debian_names,
    find_image,
    release_version,
    revision,
    with_bases,
    write_sources,
)
from skiff.images.installed import debian_packages
from skiff.images.pins import debian_differences, differences, read_debian_lock
from skiff.images.reproduce import normalise, squash
from skiff.images.sbom import make_sbom
from skiff.images.sif import INSPECT, assemble
from skiff.images.sizes import package_sizes, sizes_table
from skiff.sif import read_object

MANIFEST, LOCK, DEBIAN, SBOM = "manifest.json", "lock.txt", "debian.txt", "sbom.cdx.json"
# What of the host's environment a build needs to reach the network; it is not kept.
_PASSED = (
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "no_proxy",
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "UV_FIND_LINKS",
    "UV_OFFLINE",
)
_PATCHLEVEL = Path("include", "python3.12", "patchlevel.h")  # of an interpreter's tree
_APT_CONF = """\
APT::Sandbox::User "root";
APT::Install-Recommends "false";
Acquire::Languages "none";
Dir::Etc::SourceList "/mnt/sources.list";
Dir::Etc::SourceParts "-";
Dir::State::Lists "/mnt/apt/lists";
Dir::Cache "/mnt/apt/cache";
Dpkg::Options {{ {excluded} }};
"""


@dataclass(frozen=True)
class Options:
    """What a site chooses.

    output  folder of the SIFs
    base    an OCI or other source that `apptainer build` knows, in the place of mmdebstrap's Debian
    python  an interpreter's tree (it holds bin/python3.12); None: that of the running Python
    flash_archs  GPU architectures that flash-attn is compiled for ("90;100"); "": left out
    debian  "locked": the versions of locks/debian.txt; "newest": whatever the mirror has
    """

    output: Path
    base: str | None = None
    python: Path | None = None
    flash_archs: str = ""
    debian: Literal["locked", "newest"] = "locked"
    force: bool = False


@dataclass(frozen=True)
class Built:
    """One image of this call. `seconds` is 0 when it was there already."""

    image: Image
    path: Path
    seconds: float
    digest: str


def build_images(names: list[str], options: Options, console: Console) -> list[Built]:
    """Build the images and those that they stand on. Raises ImageError, InfraError."""
    images = with_bases(names)
    locks = [image.lock for image in images if image.lock is not None]
    if found := differences(ROOT, locks):
        raise ImageError("; ".join(found), where="locks", remedy="run: make lock")
    options.output.mkdir(parents=True, exist_ok=True)
    built, keys = [], {"": ""}
    for image in images:
        arguments = {"VERSION": release_version(), "REVISION": revision()}
        if image.name == "trainer":
            arguments["FLASH_ARCHS"] = options.flash_archs
        inputs = arguments | {"base": options.base or "", "debian": options.debian}
        if image.base is None:
            inputs["python"] = _python_version(options)
        keys[image.name] = build_key(image, inputs, keys[image.base or ""])
        target = options.output / image.file_name()
        seconds = 0.0
        if options.force or _key_of(target) != keys[image.name]:
            begun = time.monotonic()
            _build(image, target, keys[image.name], arguments, options, console)
            seconds = time.monotonic() - begun
        built.append(Built(image, target, seconds, _sha256(target)))
        state = f"built in {seconds:.0f} s" if seconds else "unchanged"
        console.print(f"{target.name}: {state}, {target.stat().st_size / 2**20:.0f} MiB")
    return built


def read_manifest(sif: Path) -> dict[str, Any]:
    """The manifest of a built image. Raises ImageError when the file is none."""
    manifest: dict[str, Any] = json.loads(read_object(sif, MANIFEST))
    return manifest


def _key_of(target: Path) -> str | None:
    try:
        return str(read_manifest(target)["key"]) if target.exists() else None
    except ImageError:
        return None


def _build(
    image: Image,
    target: Path,
    key: str,
    arguments: dict[str, str],
    options: Options,
    console: Console,
) -> None:
    recipe = read_recipe(BASE_TOML, section="rootfs")
    log = target.with_suffix(".log")
    with _workplace(options.output) as work, console.status(image.name) as status:
        stage, tree, scratch = work / "stage", work / "tree", work / "scratch"
        scratch.mkdir()
        if image.base is None:
            status.update(f"{image.name}: root file system")
            arguments = arguments | _base_source(options, work)
        else:
            base = options.output / find_image(image.base).file_name()
            arguments = arguments | {"BASE": str(base)}
        cache = _fill_stage(stage, image, options, epoch=recipe.epoch)
        binds = [f"{stage}:/mnt", f"{cache}:/mnt/cache"]
        if image.base is None:
            binds.append(f"{_interpreter(options)}:/mnt/python:ro")
        with log.open("wb") as output:
            build_tree(
                image.definition,
                tree,
                binds=binds,
                arguments=arguments,
                scratch=scratch,
                output=output,
                watch=lambda: _show(status, image, log),
            )
        status.update(f"{image.name}: packages")
        installed = {package.name: package.version for package in debian_packages(tree)}
        _check_debian(installed, options)
        normalise(tree, recipe.epoch)
        console.print(sizes_table(package_sizes(tree), title=image.name))
        lock = image.lock_file.read_bytes() if image.lock_file is not None else b""
        debian = "".join(f"{name}={version}\n" for name, version in sorted(installed.items()))
        manifest = {
            "name": image.name,
            "version": arguments["VERSION"],
            "revision": arguments["REVISION"],
            "key": key,
            "lock_sha256": hashlib.sha256(lock).hexdigest(),
            "debian_sha256": hashlib.sha256(debian.encode()).hexdigest(),
            "epoch": recipe.epoch,
        }
        extra = {
            INSPECT: inspect_tree(tree),
            MANIFEST: json.dumps(manifest, indent=1, sort_keys=True).encode(),
            LOCK: lock,
            DEBIAN: debian.encode(),
            SBOM: make_sbom(
                tree,
                name=image.name,
                version=arguments["VERSION"],
                epoch=recipe.epoch,
                lock=lock.decode(),
            ),
        }
        status.update(f"{image.name}: squashfs")
        squash(tree, work / "squashfs", epoch=recipe.epoch, processors=os.cpu_count() or 1)
        shutil.rmtree(tree)
        status.update(f"{image.name}: SIF")
        assemble(
            work / "squashfs",
            target,
            definition=image.definition.read_bytes(),
            labels={f"skiff.{name}": str(value) for name, value in manifest.items()},
            extra={name: content for name, content in extra.items() if content},
            epoch=recipe.epoch,
        )


@contextmanager
def _workplace(output: Path) -> Iterator[Path]:
    """A folder beside the result, for trees of some GiB; removed in any case."""
    work = Path(tempfile.mkdtemp(prefix=".build-", dir=output))
    try:
        yield work
    finally:
        for folder, _, _ in os.walk(work):  # Debian has folders that nobody may write
            os.chmod(folder, 0o700)
        shutil.rmtree(work)


def _base_source(options: Options, work: Path) -> dict[str, str]:
    """Build arguments that name what the base stands on."""
    if options.base is not None:
        bootstrap, mark, source = options.base.partition("://")
        if not mark or not source:
            raise ImageError(f"{options.base!r} is not of the form docker://NAME", where="--base")
        return {"BOOTSTRAP": bootstrap, "FROM": source}
    root = work / "rootfs"
    with tarfile.open(rootfs(read_recipe(BASE_TOML, section="rootfs"), "base")) as tar:
        tar.extractall(root, filter=_as_ours)
    return {"BOOTSTRAP": "localimage", "FROM": str(root)}


def _as_ours(entry: tarfile.TarInfo, folder: str) -> tarfile.TarInfo | None:
    """An entry with us as its owner: a namespace of one id has no other. No devices."""
    if entry.isdev():
        return None
    return entry.replace(uid=os.getuid(), gid=os.getgid(), uname="", gname="", deep=False)


def _fill_stage(stage: Path, image: Image, options: Options, *, epoch: int) -> Path:
    """Put the inputs of a build into `stage`, which the build sees as /mnt. Returns uv's cache."""
    for folder in ("apt/lists/partial", "apt/cache/archives/partial", "cache", "home", "python"):
        (stage / folder).mkdir(parents=True, exist_ok=True)
    stage.chmod(0o700)  # proxies and indexes may carry a password
    mirrors = _mirrors()
    recipe = read_recipe(BASE_TOML, section="rootfs")
    excluded = " ".join(f'"--path-exclude={pattern}";' for pattern in recipe.exclude)
    acquire = host_acquire()
    (stage / "acquire.conf").write_text(acquire)
    (stage / "apt.conf").write_text(_APT_CONF.format(excluded=excluded) + acquire)
    (stage / "sources.list").write_text("".join(f"{line}\n" for line in mirrors))
    (stage / "packages").write_text(" ".join(debian_names(image.name)) + "\n")
    settings = {name: os.environ[name] for name in _PASSED if name in os.environ} | {
        "APT_CONFIG": "/mnt/apt.conf",
        "DEBIAN_FRONTEND": "noninteractive",
        "DEBIAN_MIRROR": mirrors[0].split()[-3],
        "HOME": "/mnt/home",
        "SOURCE_DATE_EPOCH": str(epoch),
    }
    if certificates := os.environ.get("SSL_CERT_FILE"):
        shutil.copy(certificates, stage / "certificates.pem")
        settings["SSL_CERT_FILE"] = "/mnt/certificates.pem"
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in settings.items()]
    (stage / "environment").write_text("".join(lines))
    if image.lock_file is not None:
        shutil.copy(image.lock_file, stage / "lock.txt")
        for lock in ("flash-attn.txt", "cuda-compiler.txt"):
            shutil.copy(ROOT / "locks" / lock, stage)
        for script in ("install", "flash-attn"):
            shutil.copy(ROOT / "containers" / script, stage / script)
        shutil.copy(find_uv_bin(), stage / "uv")
        write_sources(stage / "skiff.tar", epoch=epoch)
    cache = Path(os.environ.get("UV_CACHE_DIR") or Path.home() / ".cache" / "uv")
    cache.mkdir(parents=True, exist_ok=True)
    return cache


def _mirrors() -> list[str]:
    """Lines of sources.list: DEBIAN_MIRROR's, else those of this host."""
    suite = read_recipe(BASE_TOML, section="rootfs").suite
    if mirror := os.environ.get("DEBIAN_MIRROR"):
        return [f"deb {mirror} {suite} main"]
    if found := host_mirrors(suite):
        return found
    raise ImageError(
        f"this host's apt knows no mirror of Debian {suite}",
        where="images build",
        remedy="name one: DEBIAN_MIRROR=URL",
    )


def _interpreter(options: Options) -> Path:
    """The tree of a CPython 3.12 that can be copied."""
    tree = options.python or Path(sys.base_prefix)
    needed = (tree / "bin" / "python3.12", tree / _PATCHLEVEL)
    if not all(path.exists() for path in needed) or tree == Path("/usr"):
        raise ImageError(
            "is not the tree of a Python 3.12 that can be copied into an image",
            where=str(tree),
            remedy="name one, as uv python install 3.12 or pyenv make it: --python FOLDER",
        )
    return tree.resolve()


def _python_version(options: Options) -> str:
    """What tells interpreters apart, wherever they lie."""
    return _sha256(_interpreter(options) / _PATCHLEVEL)


def _check_debian(installed: dict[str, str], options: Options) -> None:
    """Raises ImageError with the packages that are not the locked ones."""
    if options.debian == "newest" or options.base is not None:
        return
    locked = read_debian_lock(DEBIAN_LOCK)
    if found := debian_differences(installed, locked):
        more = f" and {len(found) - 10} more" if len(found) > 10 else ""
        raise ImageError(
            "; ".join(found[:10]) + more,
            where="locks/debian.txt",
            remedy="take the mirror's versions: make lock-debian (or build with DEBIAN=newest)",
        )


def lock_debian(built: list[Built]) -> Path:
    """Write locks/debian.txt: the Debian packages that these images hold."""
    found: dict[str, str] = {}
    for one in built:
        lines = read_object(one.path, DEBIAN).decode().splitlines()
        found |= dict(line.split("=", 1) for line in lines)
    text = "# Debian packages of the images: make lock-debian\n"
    text += "".join(f"{name}={version}\n" for name, version in sorted(found.items()))
    write_atomic(DEBIAN_LOCK, text)
    return DEBIAN_LOCK


def _show(status: Status, image: Image, log: Path) -> None:
    """The last line of the build's output, as far as it fits."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2000))
        lines = file.read().decode(errors="replace").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    status.update(Text(f"{image.name}: {last[:100]}"))


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
