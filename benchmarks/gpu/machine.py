"""What `carry.py` packed, made into an environment on a machine with a GPU and no network.

    python3 benchmarks/gpu/machine.py unpack CARRIED WORK      -> WORK/venv, WORK/sandbox.tar
    python3 benchmarks/gpu/machine.py flash-attn CARRIED WORK  -> WORK/wheels
    python3 benchmarks/gpu/machine.py install CARRIED WORK     that wheel, into WORK/venv

CARRIED holds the parts, WORK is a folder on a local disk. Run it with the Python 3.12 that has the
lock's torch: the environment puts the carried packages before that Python's own. `flash-attn` is
built for one architecture, in minutes on many cores; `unpack` does not wait for it.
Standard library only. Needs zstd and the right to write where Apptainer was; flash-attn wants nvcc.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
ARCHITECTURE = "90"  # as FLASH_ATTN_CUDA_ARCHS writes it


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["unpack", "flash-attn", "install"])
    parser.add_argument("carried", type=Path)
    parser.add_argument("work", type=Path)
    arguments = parser.parse_args()
    carried, work = arguments.carried.absolute(), arguments.work.absolute()
    (work / "results").mkdir(parents=True, exist_ok=True)
    begun = time.monotonic()
    if arguments.what == "unpack":
        found = unpack(carried, work)
        make_environment(work)
    elif arguments.what == "flash-attn":
        found = build_flash_attn(carried, work)
    else:
        found = install_flash_attn(work)
    found["seconds"] = round(time.monotonic() - begun, 1)
    record(work, arguments.what, found)


def record(work: Path, name: str, found: dict[str, object]) -> None:
    """Keep what a stage has found, for `trainer.py report`."""
    text = json.dumps(found, indent=1)
    (work / "results" / f"{name}.json").write_text(text + "\n")
    print(name, text)


def unpack(carried: Path, work: Path) -> dict[str, object]:
    """Check every part, then unpack the stream. Exits when a part is missing or altered."""
    manifest = json.loads((carried / "manifest.json").read_text())
    parts = [carried / name for name in sorted(manifest["parts"])]
    for part in parts:
        if hashlib.sha256(part.read_bytes()).hexdigest() != manifest["parts"][part.name]:
            raise SystemExit(f"{part} is not what was packed")
    cat = subprocess.Popen(["cat", *parts], stdout=subprocess.PIPE)
    zstd = subprocess.Popen(
        ["zstd", "--decompress", "--long=27", "--stdout"], stdin=cat.stdout, stdout=subprocess.PIPE
    )
    subprocess.run(["tar", "-C", work, "-xf", "-"], stdin=zstd.stdout, check=True)
    if cat.wait() or zstd.wait():
        raise SystemExit("the parts could not be unpacked")
    prefix = Path(manifest["apptainer"])  # its programs name their libraries by this path
    if not prefix.exists():
        prefix.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(work / "apptainer", prefix)
    return {"parts": len(parts), "bytes": manifest["bytes"], "left_out": manifest["left_out"]}


def make_environment(work: Path) -> None:
    """WORK/venv: the carried packages first, then this Python's own (torch), and Skiff."""
    venv.create(work / "venv", with_pip=False, symlinks=True)
    site = site_packages(work)
    site.rmdir()
    (work / "site").rename(site)
    places = (ROOT / "python", sysconfig.get_path("purelib"))
    (site / "~machine.pth").write_text("".join(f"{place}\n" for place in places))  # sorts last
    # Skiff's entry points, as an installation of this checkout has them.
    script = "import sys; from setuptools import build_meta as build; "
    script += "build.prepare_metadata_for_build_wheel(sys.argv[1])"
    python, metadata = work / "venv" / "bin" / "python", work / "metadata"
    metadata.mkdir()
    subprocess.run([python, "-c", script, metadata], cwd=ROOT, check=True, capture_output=True)
    for folder in metadata.iterdir():
        folder.rename(site / folder.name)


def build_flash_attn(carried: Path, work: Path) -> dict[str, object]:
    """Build the wheel with this Python, whose torch the trainer will use."""
    sources, wheels = work / "flash-attn", work / "wheels"
    sources.mkdir(exist_ok=True)
    [archive] = carried.glob("flash_attn-*.tar.gz")
    subprocess.run(["tar", "-C", sources, "--strip-components=1", "-xf", archive], check=True)
    settings = {
        "FLASH_ATTENTION_FORCE_BUILD": "TRUE",  # else it looks for a wheel on the network
        "FLASH_ATTN_CUDA_ARCHS": ARCHITECTURE,
        "NVCC_THREADS": "1",  # one architecture: threads of one nvcc have nothing to share
        "MAX_JOBS": str(os.cpu_count()),
    }
    with (work / "flash-attn.log").open("w") as log:
        subprocess.run(
            [sys.executable, "setup.py", "bdist_wheel", "--dist-dir", wheels],
            cwd=sources,
            env=os.environ | settings,
            stdout=log,
            stderr=subprocess.STDOUT,
            check=True,
        )
    [wheel] = wheels.glob("flash_attn-*.whl")
    return {
        "wheel": wheel.name,
        "bytes": wheel.stat().st_size,
        "sha256": hashlib.sha256(wheel.read_bytes()).hexdigest(),
        "source_sha256": hashlib.sha256(archive.read_bytes()).hexdigest(),
        "settings": settings,
    }


def install_flash_attn(work: Path) -> dict[str, object]:
    """Put the wheel into the environment, as an installer without scripts to make would."""
    [wheel] = (work / "wheels").glob("flash_attn-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site_packages(work))
    return {"wheel": wheel.name}


def site_packages(work: Path) -> Path:
    return Path(sysconfig.get_path("purelib", vars={"base": str(work / "venv")}))


if __name__ == "__main__":
    main()
