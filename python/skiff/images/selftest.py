"""Run inside an image: what the lock says is there, it can be imported, the entry points start.

    python -m skiff.images.selftest IMAGE

Not covered: a GPU, sandboxes, training; tests/sif does those from outside.
"""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version

from skiff.errors import ImageError, SkiffError
from skiff.images.definitions import ROOT, Image, find_image, release_version
from skiff.images.pins import read_pins

_TRAINER = ("openhands.sdk", "ray", "tensordict", "torch", "transformers", "verl", "vllm", "wandb")
IMPORTS = {
    "base": (),
    "runtime": ("fastapi", "uvicorn", "skiff.runtime.server"),
    "trainer-cpu": (*_TRAINER, "skiff.train.trainer"),
    "trainer": (*_TRAINER, "skiff.train.trainer"),
}
ENTRY_POINTS = {"runtime": "runtime", "trainer-cpu": "train", "trainer": "train"}
HELP_SECONDS = 120


def check(image: Image) -> None:
    """Raises ImageError with what is wrong."""
    if version("skiff") != release_version():
        raise ImageError(f"skiff {version('skiff')} is installed", where=release_version())
    if image.lock_file is not None:
        _check_versions(image)
    for module in IMPORTS[image.name]:
        importlib.import_module(module)
    if entry_point := ENTRY_POINTS.get(image.name):
        command = [sys.executable, str(ROOT / "entrypoints" / entry_point), "--help"]
        subprocess.run(command, check=True, timeout=HELP_SECONDS, stdout=subprocess.DEVNULL)


def _check_versions(image: Image) -> None:
    assert image.lock_file is not None
    wrong = []
    for name, wanted in read_pins(image.lock_file)[0].items():
        try:
            found = version(name)
        except PackageNotFoundError:
            found = "nothing"
        if found != wanted:
            wrong.append(f"{name}: {found} is installed, {wanted} is locked")
    if wrong:
        raise ImageError("; ".join(wrong), where=image.name)


def main() -> int:
    image = find_image(sys.argv[1])
    with tempfile.TemporaryDirectory() as home:  # an image's HOME may not be writable
        os.environ.update(HOME=home, VLLM_LOGGING_LEVEL="ERROR", OPENHANDS_SUPPRESS_BANNER="1")
        try:
            check(image)
        except SkiffError as error:
            print(f"error: {error}", file=sys.stderr)
            return error.exit_code
    print(f"skiff-{image.name} {release_version()}: as locked, and it starts")
    return 0


if __name__ == "__main__":
    sys.exit(main())
