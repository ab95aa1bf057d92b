"""The SIFs: time, size, sameness -> images.md: python benchmarks/images.py [IMAGE ...]

Each image is built twice, in two folders, from a warm package cache. Figures: seconds of the first
build, MiB of the SIF and of its files, and whether the two are the same bytes; if not, in which
files they differ. Rows of images that were not built anew stay. Needs up to 40 GiB for the CUDA
trainer. Run it on a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
from pathlib import Path

import psutil
from rich.console import Console
from skiff.images.build import Built, Options, build_images, read_manifest
from skiff.images.definitions import DEFAULT, IMAGES
from skiff.images.differences import differing_files

TABLE = Path(__file__).with_suffix(".md")
BEGIN = "<!-- measured -->\n"
SHOWN = 10  # differing files


def main(names: list[str], folder: Path | None) -> None:
    rows = read_rows()
    console = Console()
    with tempfile.TemporaryDirectory(dir=folder) as place:
        first, second = (Path(place, name) for name in ("first", "second"))
        once = build_images(names, Options(output=first, debian="newest"), console)
        for one in once:
            again = build_images([one.image.name], Options(output=second, debian="newest"), console)
            rows[one.image.name] = row(one, again[-1])
            print(rows[one.image.name], flush=True)
            if one.image.name != "base":  # the others stand on it
                one.path.unlink()
                again[-1].path.unlink()
    head = TABLE.read_text().partition(BEGIN)[0] if TABLE.exists() else "# The images\n\n"
    cores = psutil.cpu_count()
    told = (
        f"`python benchmarks/images.py`; {cores} cores, {platform.machine()}, warm package cache."
    )
    lines = [
        told,
        "",
        "| image | built in | SIF | revision | built twice |",
        "|---|---|---|---|---|",
    ]
    lines += [rows[name] for name in IMAGES if name in rows]
    TABLE.write_text(head + BEGIN + "\n".join(lines) + "\n")


def row(once: Built, again: Built) -> str:
    size = once.path.stat().st_size / 2**20
    if once.digest == again.digest:
        same = f"the same bytes, sha256 {once.digest[:16]}"
    else:
        found = differing_files(once.path, again.path)
        same = f"{len(found)} files differ: {'; '.join(found[:SHOWN])}"
    revision = read_manifest(once.path)["revision"][:12]
    return f"| {once.image.name} | {once.seconds:.0f} s | {size:.0f} MiB | `{revision}` | {same} |"


def read_rows() -> dict[str, str]:
    """The rows of the table as it stands."""
    lines = TABLE.read_text().splitlines() if TABLE.exists() else []
    found = {line.split("|")[1].strip(): line for line in lines if line.startswith("| ")}
    return {name: line for name, line in found.items() if name in IMAGES}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image", nargs="*")
    parser.add_argument("--folder", type=Path, help="for the images; default: the system's")
    parsed = parser.parse_args()
    main(parsed.image or list(DEFAULT), parsed.folder)
