"""What a half needs of the very node that it runs on: container engine, ids, driver, memory, disk.

The container check starts a container of nothing, as a runtime server does before its first one.
Not covered: the network between the nodes.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
from pathlib import Path

from skiff.apptainer import apptainer_root, check_overlay, find_apptainer, id_map, run_sif
from skiff.config import Config
from skiff.doctor.check import Check, absent, fail, ok, tried, warn
from skiff.doctor.places import GIB, check_port, existing
from skiff.gpus import read_driver, read_gpus
from skiff.images.build import LOCK
from skiff.images.runnable import FUSE
from skiff.podman import check_podman, podman_root
from skiff.sif import read_object

STORE_GIB = 10  # images and the layers that sandboxes write
SCRATCH_GIB = 5  # Ray's spill and torch's temporary files
SHM_GIB = 2  # Ray's objects, NCCL
NODE_LOCK = Path(__file__).parents[3] / "locks" / "cuda.txt"


def check_runtime_node(config: Config) -> list[Check]:
    """Can sandboxes be served from this node?"""
    found = [tried("user namespaces", _user_namespaces)]
    if config.runtime.backend == "podman":
        found += [tried("subuid, subgid", _subordinate_ids), _newuidmap(), tried("podman", _podman)]
        found.append(_room("podman's store", podman_root(), STORE_GIB, _elsewhere("PODMAN")))
    else:
        found += [tried("apptainer", _apptainer), tried("overlay", _overlay)]
        found += _sifs(config.runtime.sif_folder)
    if config.images.runtime is not None:
        found += [tried("apptainer", _apptainer), _fuse()]
    return [*dict.fromkeys(found), check_port(config)]


def check_trainer_node(config: Config) -> list[Check]:
    """Can the trainer run on this node?"""
    found = [
        _room("/dev/shm", Path("/dev/shm"), SHM_GIB, "ask for more memory on the node"),
        _room("/tmp", Path("/tmp"), SCRATCH_GIB, "clean it up, or use another node"),
    ]
    if config.run.sync_to is not None:
        found.append(_sync(config.run.sync_to))
    if config.images.trainer is not None:
        found += [tried("user namespaces", _user_namespaces), tried("apptainer", _apptainer)]
        found.append(_fuse())
    if config.hardware.platform == "cuda":
        found += [tried("GPUs", lambda: _gpus(config)), tried("CUDA", lambda: _cuda(config))]
    return found


def _elsewhere(engine: str) -> str:
    return f"set SKIFF_{engine}_ROOT to a folder on a disk of the node"


def _user_namespaces() -> Check:
    return ok("user namespaces", f"can be made, with {id_map().count:,} ids")


def _subordinate_ids() -> Check:
    if os.getuid() == 0:
        return ok("subuid, subgid", "root maps ids itself")
    if id_map().single:
        return fail(
            "subuid, subgid",
            "you have no range of ids in /etc/subuid and /etc/subgid, or not the same in both",
            "ask for `usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`, or use"
            ' runtime.backend = "apptainer"',
        )
    return ok("subuid, subgid", f"{id_map().count:,} ids")


def _newuidmap() -> Check:
    if os.getuid() == 0:
        return absent("newuidmap", "root does without it")
    if (program := shutil.which("newuidmap")) is None:
        return fail("newuidmap", "is not installed", "ask for the package uidmap (shadow-utils)")
    return ok("newuidmap", program)


def _podman() -> Check:
    version = check_podman(["version", "--format={{.Client.Version}}"]).decode().strip()
    return ok("podman", f"version {version}, and a container can be started")


def _apptainer() -> Check:
    program = find_apptainer()
    return ok("apptainer", f"{program}: {run_sif(['--version']).stdout.strip()}")


def _overlay() -> Check:
    folder = apptainer_root()
    check_overlay(folder)
    return _room("overlay", folder, STORE_GIB, _elsewhere("APPTAINER"))


def _sifs(folder: Path | None) -> list[Check]:
    if folder is None:
        return []
    if not os.access(folder, os.R_OK | os.X_OK):
        return [fail("sif_folder", f"{folder} is no folder that can be read", "runtime.sif_folder")]
    return [ok("sif_folder", f"{folder}: {len(list(folder.glob('*.sif')))} images")]


def _fuse() -> Check:
    if os.access(FUSE, os.R_OK | os.W_OK):
        return ok("/dev/fuse", "is open: images are mounted")
    return warn(
        "/dev/fuse", "is closed: an image is unpacked once on each node, which takes a while"
    )


def _sync(destination: str) -> Check:
    if shutil.which("rsync") is None:
        return fail("run.sync_to", "rsync is not installed", "have it installed, or unset it")
    if destination.startswith("/") and not os.access(destination, os.W_OK | os.X_OK):
        return fail("run.sync_to", f"{destination} is no folder that can be written", "make it")
    return ok("run.sync_to", f"{destination}, by {shutil.which('rsync')}")


def _room(name: str, folder: Path, enough: float, remedy: str) -> Check:
    free = shutil.disk_usage(existing(folder)).free / GIB
    words = f"{folder}: {free:,.1f} GiB free"
    return ok(name, words) if free >= enough else warn(name, words, remedy)


def _gpus(config: Config) -> Check:
    gpus, wanted = read_gpus(), config.hardware.gpus_per_node
    words = f"{len(gpus)} × {gpus[0].name}" if gpus else "none"
    slices = os.environ.get("CUDA_VISIBLE_DEVICES", "").count("MIG-")
    if max(len(gpus), slices) < wanted:
        return warn(
            "GPUs",
            f"{words}, and hardware.gpus_per_node is {wanted}",
            "a look by --on-nodes asks for one GPU only; else change hardware.gpus_per_node",
        )
    return ok("GPUs", f"{slices} MIG slices of {words}" if slices else words)


def _cuda(config: Config) -> Check:
    driver, wanted = read_driver(), cuda_of_trainer(config)
    words = f"driver {driver.version} serves CUDA {driver.cuda[0]}.{driver.cuda[1]}"
    if wanted is None:
        return warn("CUDA", f"{words}; that of the trainer is not known")
    words += f", the trainer is built for {wanted[0]}.{wanted[1]}"
    # Within one major version an older driver serves newer libraries.
    if driver.cuda[0] < wanted[0]:
        return fail("CUDA", words, "a node with a newer driver")
    return ok("CUDA", words)


def cuda_of_trainer(config: Config) -> tuple[int, int] | None:
    """The CUDA that the trainer's packages bring: of its image, else of this Python."""
    if config.images.trainer is not None:
        return _runtime_version(read_object(config.images.trainer, LOCK).decode())
    if importlib.util.find_spec("torch") is None or not NODE_LOCK.is_file():
        return None
    return _runtime_version(NODE_LOCK.read_text())


def _runtime_version(lock: str) -> tuple[int, int] | None:
    found = re.search(r"^nvidia-cuda-runtime(?:-cu\d+)?==(\d+)\.(\d+)", lock, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None
