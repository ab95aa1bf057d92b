"""Files and folders that a profile names, secrets, ports and proxies, as seen from this machine.

Every check holds on a login node and on a compute node; what only a node has is in `machine`.
"""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from skiff.config import Config
from skiff.config.secrets import check_in_file, load_secrets
from skiff.doctor.check import Check, absent, fail, failed, ok, tried, warn
from skiff.errors import SkiffError
from skiff.images.build import read_manifest
from skiff.images.definitions import release_version
from skiff.images.signature import verify
from skiff.mounts import NETWORK, filesystem
from skiff.sandbox.client import KEY_FILE_VARIABLE
from skiff.sandbox.key import read_key_file
from skiff.tasks.store import skiff_home
from skiff.train.data import select
from skiff.train.inputs import WARM_START, model_folder

GIB = 1 << 30
# Free space below which a run does not begin well, and below which it may not end well, in GiB.
RUN_GIB = (2, 20)
HOME_GIB = (1, 10)
MODEL_WEIGHTS = ("*.safetensors", "*.bin")


def check_places(config: Config, *, key: Path | None = None) -> list[Check]:
    """What both halves need. `key`: the public key that the images must be signed with."""
    return [
        _run_folder(config),
        _disk("skiff home", skiff_home(), HOME_GIB, "set SKIFF_HOME to a folder with room"),
        *_images(config, key),
        *_binds(config),
        *_secrets(config),
        _proxy(os.environ),
    ]


def check_shared(config: Config) -> Check:
    """Can nodes see the run folder? Only a hint: a mount table does not tell."""
    there = existing(config.run.folder.absolute())
    kind = filesystem(there)
    if kind in NETWORK:
        return ok("shared folder", f"{there} lies on {kind}, which nodes can share")
    return warn(
        "shared folder",
        f"{there} lies on {kind}: nodes see it only where the site shares it",
        "skiff doctor PROFILE --on-nodes looks from the nodes",
    )


def check_model(config: Config) -> Check:
    """Are the policy's files there and readable?"""
    if config.model.path == WARM_START:
        return ok("model", "is made by the run")
    return tried("model", lambda: _weights(model_folder(config)))


def _weights(folder: Path) -> Check:
    files = [file for pattern in MODEL_WEIGHTS for file in folder.glob(pattern)]
    if not files:
        return fail("model", f"{folder} holds no weights", "download the model again")
    closed = [file for file in (folder / "config.json", *files) if not os.access(file, os.R_OK)]
    if closed:
        return fail("model", f"{closed[0]} cannot be read", f"chmod a+r {closed[0]}")
    size = sum(file.stat().st_size for file in files) / GIB
    return ok("model", f"{folder}: {len(files)} files of weights, {size:.1f} GiB; no hub is asked")


def check_tasks(config: Config) -> Check:
    """Are the tasks there, and enough of them?"""
    return tried("tasks", lambda: _counts(config))


def _counts(config: Config) -> Check:
    splits = select(config)
    train, validation = len(splits["train"]), len(splits["validation"])
    return ok("tasks", f"{train} to train on, {validation} for validation")


def existing(path: Path) -> Path:
    """`path`, or the nearest folder above it that is there."""
    return next(one for one in (path, *path.parents) if one.exists())


def check_port(config: Config) -> Check:
    """Can the runtime server listen, here?"""
    runtime = config.runtime
    try:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((runtime.host, runtime.port))
    except OSError as error:
        return fail(
            "port",
            f"port {runtime.port} of {runtime.host} cannot be had: {error.strerror}",
            "runtime.port = 0 takes any free port; runtime.host must be an address of the node",
        )
    what = f"port {runtime.port}" if runtime.port else "a free port"
    return ok("port", f"{what} of {runtime.host} can be had")


def _run_folder(config: Config) -> Check:
    folder = config.run.folder.absolute()
    there = existing(folder)
    if not os.access(there, os.W_OK | os.X_OK):
        return fail("run folder", f"{there} cannot be written", "set run.folder")
    return _disk("run folder", folder, RUN_GIB, "set run.folder to a file system with room")


def _disk(name: str, folder: Path, gib: tuple[int, int], remedy: str) -> Check:
    there = existing(folder.absolute())
    free = shutil.disk_usage(there).free / GIB
    least, enough = gib
    words = f"{folder}: {free:,.0f} GiB free"
    if free < least:
        return fail(name, words, remedy)
    return warn(name, words, remedy) if free < enough else ok(name, words)


def _images(config: Config, key: Path | None) -> Iterator[Check]:
    for half in ("runtime", "trainer"):
        sif: Path | None = getattr(config.images, half)
        if sif is None:
            yield ok(f"{half} image", "none: the half runs from this clone")
            continue
        yield tried(f"{half} image", partial(_image, f"{half} image", sif))
        if key is not None:
            yield tried(f"{half} signature", partial(_signature, f"{half} signature", sif, key))


def _image(name: str, sif: Path) -> Check:
    if not os.access(sif, os.R_OK):
        return fail(name, f"{sif} is no file that can be read", "make build-sif; images.*")
    found = str(read_manifest(sif)["version"])
    if found != release_version():
        return warn(
            name,
            f"{sif} is of version {found}, this clone of {release_version()}",
            "check out that version, or build the image again: make build-sif",
        )
    return ok(name, f"{sif}: version {found}")


def _signature(name: str, sif: Path, key: Path) -> Check:
    verify(sif, key)
    return ok(name, f"signed by the key of {key}")


def _binds(config: Config) -> Iterator[Check]:
    for path in config.images.binds:
        if not path.is_dir():
            yield fail("bind", f"{path} is no folder here", "make it, or change images.binds")
        else:
            yield ok("bind", f"{path} is there")
    if not config.images.binds:
        yield absent("bind", "images.binds names no further folder")


def _secrets(config: Config) -> Iterator[Check]:
    try:
        names = sorted(load_secrets())
        if config.logging.wandb and config.slurm is not None:
            check_in_file("WANDB_API_KEY")
    except SkiffError as error:
        yield failed("secrets", error)
        return
    yield ok("secrets", f"found: {', '.join(names) or 'none'}")
    if config.logging.wandb and "WANDB_API_KEY" not in names:
        yield warn("wandb", "has no key: it logs offline", "WANDB_API_KEY in .env (mode 0600)")
    if config.runtime.url is not None:
        yield tried("key", _run_key)


def _run_key() -> Check:
    named = os.environ.get(KEY_FILE_VARIABLE)
    if named is None:
        return fail("key", f"runtime.url is set, but {KEY_FILE_VARIABLE} is not", "set it")
    read_key_file(Path(named))
    return ok("key", f"{named} is readable by you alone")


def _proxy(environ: Mapping[str, str]) -> Check:
    names = [name for name in ("http_proxy", "HTTP_PROXY", "all_proxy") if environ.get(name)]
    if not names:
        return ok("proxy", "none stands between the halves")
    if environ.get("no_proxy") or environ.get("NO_PROXY"):
        return ok("proxy", f"{names[0]} is set, with exceptions; Skiff's own calls go past it")
    return warn(
        "proxy",
        f"{names[0]} is set without no_proxy; Skiff's own calls go past it, others may not",
        "put the names of the nodes into no_proxy",
    )
