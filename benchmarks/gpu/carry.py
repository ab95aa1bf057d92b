"""The Python layers of a lock, packed for a machine that has a GPU but no network.

    python benchmarks/gpu/carry.py OUT --sandbox TAR

OUT gets layers.tar.zst.NN (one zstd stream, cut into parts) and manifest.json (sha256 of each part,
the packages inside, what was left out). In the stream: site/ (every package of locks/cuda.txt that
the machine is not expected to have), apptainer/ and sandbox.tar. Beside it is flash-attn's source.
`machine.py` unpacks them. Needs uv, pip, zstd and an Apptainer here, and the project's environment.

Not covered: torch, Triton and NVIDIA's CUDA libraries. They are 4 GB, and `trainer.py` checks that
the machine's are the lock's.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import IO

from skiff.apptainer import find_apptainer
from skiff.files import write_atomic

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "locks" / "cuda.txt"
FLASH_ATTN = "flash-attn==2.8.3"
# Of the machine: PyTorch and what it stands on.
THERE = re.compile(
    r"torch|torchaudio|torchvision|triton|cuda-toolkit|"
    r"nvidia-(cublas|cuda-(cccl|crt|cupti|nvcc|nvrtc|runtime|tileiras)|cudnn-cu13|cufft|cufile|"
    r"curand|cusolver|cusparse|cusparselt-cu13|nccl-cu13|nvjitlink|nvshmem-cu13|nvtx|nvvm)"
)
# For other GPUs than Hopper's and Ampere's, and a third of the whole.
LEFT_OUT = ("flashinfer_cubin/cubins", "tokenspeed_triton", "tokenspeed_triton-*")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder; made, and emptied when it exists")
    parser.add_argument("--sandbox", type=Path, required=True, help="tar of a root file system")
    parser.add_argument("--part-mib", type=int, default=60, help="size of a part")
    arguments = parser.parse_args()
    out = arguments.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    tree = out / "tree"
    tree.mkdir(parents=True)
    install(tree / "site")
    fetch_flash_attn(out)
    shutil.copytree(find_apptainer().parents[2], tree / "apptainer", symlinks=True)
    shutil.copyfile(arguments.sandbox, tree / "sandbox.tar")
    pack(tree, out, arguments.part_mib)
    write_atomic(out / "manifest.json", json.dumps(manifest(tree, out), indent=1) + "\n")


def carried(lock: str) -> list[str]:
    """The requirements of a lock, each with its hashes on one line, without what is there."""
    lines = lock.replace("\\\n", " ").splitlines()
    named = [line for line in lines if re.match(r"[A-Za-z0-9]", line)]
    return [line for line in named if not THERE.fullmatch(line.partition("==")[0])]


def install(site: Path) -> None:
    """Fill `site` from the lock, by hash. One package of it has no wheel and is built."""
    wanted = site.with_suffix(".txt")
    write_atomic(wanted, "\n".join(carried(LOCK.read_text())) + "\n")
    run("uv", "pip", "install", "--quiet", "--target", site, "--python", sys.executable,
        "--no-deps", "--require-hashes", "--requirement", wanted)  # fmt: skip


def fetch_flash_attn(out: Path) -> None:
    """flash-attn's source distribution. Its setup.py wants torch only to be asked for a name."""
    environment = {"FLASH_ATTENTION_SKIP_CUDA_BUILD": "TRUE"}
    environment["PYTHONPATH"] = sysconfig.get_path("purelib")
    base = Path(sys.base_prefix, "bin", "python3")  # it has pip; the project's environment has not
    run(base, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:",
        "--no-build-isolation", "--dest", out, FLASH_ATTN, environment=environment)  # fmt: skip


def pack(tree: Path, out: Path, part_mib: int) -> None:
    """Compress `tree` into parts of `part_mib` MiB. The long window finds kernels that repeat."""
    excluded = [f"--exclude=./site/{name}" for name in LEFT_OUT]
    tar = subprocess.Popen(
        ["tar", "--sort=name", *excluded, "-C", tree, "-cf", "-", "."], stdout=subprocess.PIPE
    )
    zstd = subprocess.Popen(
        ["nice", "zstd", "--quiet", "-10", "-T0", "--long=27"],
        stdin=tar.stdout,
        stdout=subprocess.PIPE,
    )
    run("split", f"--bytes={part_mib}M", "--numeric-suffixes", "-", out / "layers.tar.zst.",
        stdin=zstd.stdout or subprocess.DEVNULL)  # fmt: skip
    for name, process in (("tar", tar), ("zstd", zstd)):
        if process.wait() != 0:
            raise SystemExit(f"{name} ended with exit code {process.returncode}")


def manifest(tree: Path, out: Path) -> dict[str, object]:
    parts = sorted(out.glob("layers.tar.zst.*"))
    names = [line.split()[0] for line in (tree / "site.txt").read_text().splitlines()]
    return {
        "apptainer": str(find_apptainer().parents[2]),
        "parts": {part.name: hashlib.sha256(part.read_bytes()).hexdigest() for part in parts},
        "bytes": sum(part.stat().st_size for part in parts),
        "packages": names,
        "left_out": LEFT_OUT,
    }


def run(
    *command: object,
    environment: dict[str, str] | None = None,
    stdin: IO[bytes] | int = subprocess.DEVNULL,
) -> None:
    """Run to the end; what it prints is shown. Raises CalledProcessError."""
    subprocess.run(
        [str(word) for word in command],
        env=os.environ | (environment or {}),
        stdin=stdin,
        check=True,
    )


if __name__ == "__main__":
    main()
