"""Two builds of one definition give one file; what a build leaves behind is taken out."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import py_compile
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from skiff.apptainer import apptainer_environment, find_apptainer
from skiff.errors import InfraError
from skiff.images.differences import differing_files
from skiff.images.reproduce import normalise, squash, without_host_paths
from skiff.images.sif import assemble

EPOCH = 1_735_689_600
DEFINITION = """\
Bootstrap: localimage
From: {folder}/root

%files
    {folder}/note /etc/note
    {folder}/shadow /etc/shadow

%labels
    version 1.2.3

%post
    busybox mkdir -p /var/log /var/cache/ldconfig /root/.cache
    busybox date > /var/log/build.log
    busybox date > /var/cache/ldconfig/aux-cache
    busybox date > /root/.cache/index
    busybox mktemp -d
    busybox hostname > /etc/hostname
    busybox od -N 8 /dev/urandom > /etc/machine-id
    busybox chmod 640 /etc/shadow

%runscript
    exec busybox "$@"
"""


def build(folder: Path, *, day: int) -> Path:
    """A tree as Apptainer builds it in `folder`, of a busybox and one compiled module."""
    root = folder / "root"
    (root / "bin").mkdir(parents=True)
    (root / "etc").mkdir()
    shutil.copy("/bin/busybox", root / "bin")
    (root / "bin" / "sh").symlink_to("busybox")
    (root / "opt").mkdir()
    (root / "opt" / "module.py").write_text("ANSWER = 42\n")
    py_compile.compile(str(root / "opt" / "module.py"), dfile="/opt/module.py")
    (folder / "note").write_text("the same\n")
    (folder / "my.def").write_text(DEFINITION.format(folder=folder))
    (folder / "shadow").write_text(f"root:*:{day}:0:99999:7:::\n")
    command = [find_apptainer(), "--silent", "build", "--userns", "--sandbox"]
    subprocess.run(
        ["unshare", "--map-root-user", *command, folder / "tree", folder / "my.def"],
        env=apptainer_environment(),
        check=True,
    )
    return folder / "tree"


def sif(tree: Path) -> Path:
    """The SIF of a tree, made beside it."""
    squash(tree, tree.with_name("squashfs"), epoch=EPOCH, processors=1)
    target = tree.with_name("image.sif")
    description = tree / ".singularity.d"
    assemble(
        tree.with_name("squashfs"),
        target,
        definition=(description / "Singularity").read_bytes(),
        labels=json.loads((description / "labels.json").read_bytes()),
        epoch=EPOCH,
        extra={"manifest.json": b"{}"},
    )
    return target


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_two_builds_in_two_places_at_two_times_are_one_file(tmp_path: Path) -> None:
    one = build(tmp_path / "one", day=20_000)
    begun = int(time.time())
    while int(time.time()) <= begun:  # Apptainer writes down the second
        time.sleep(0.05)
    other = build(tmp_path / "a" / "longer" / "way", day=20_001)
    before = "\n".join(differing_files(one, other))
    for name in ("labels.json: content", "/etc/machine-id: content", "/var/log/build.log: content"):
        assert name in before
    assert "/opt/__pycache__/module.cpython-312.pyc: content" in before
    for tree in (one, other):
        normalise(tree, EPOCH)
    assert differing_files(one, other) == []
    for path in one.rglob("*"):
        if path.is_file() and not path.is_symlink():
            assert str(tmp_path).encode() not in path.read_bytes(), path
    found = sif(one), sif(other)
    assert differing_files(*found) == []
    assert sha256(found[0]) == sha256(found[1])
    # What belongs to the image is still there.
    labels = json.loads((one / ".singularity.d" / "labels.json").read_bytes())
    assert labels["version"] == "1.2.3"
    assert labels["org.label-schema.build-date"] == "2025-01-01T00:00:00Z"
    assert labels["org.label-schema.usage.singularity.deffile.from"] == "root"
    assert (one / "etc" / "note").read_text() == "the same\n"
    assert (one / "etc" / "shadow").read_text() == f"root:*:{EPOCH // 86_400}:0:99999:7:::\n"
    assert (one / "etc" / "shadow").stat().st_mode & 0o777 == 0o640
    assert (one / "etc" / "hostname").read_bytes() == b""
    assert list((one / "tmp").iterdir()) == []


def test_compiled_python_stays_valid(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("ANSWER = 42\n")
    py_compile.compile(str(module))
    normalise(tmp_path, EPOCH)
    assert module.stat().st_mtime == EPOCH
    command = [sys.executable, "-v", "-B", "-c", "import module"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "module.cpython-312.pyc matches" in done.stderr


def test_compiled_python_that_names_its_sources_hash_is_not_touched(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text("ANSWER = 42\n")
    mode = py_compile.PycInvalidationMode.UNCHECKED_HASH
    made = Path(py_compile.compile(str(module), invalidation_mode=mode) or "")
    before = made.read_bytes()
    normalise(tmp_path, EPOCH)
    assert made.read_bytes() == before


@pytest.mark.parametrize("name", ["tmp", "var/tmp", "var/log", "run", "etc"])
def test_a_link_to_a_folder_of_the_host_is_not_followed(tmp_path: Path, name: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    for file in ("keep", "machine-id", "passwd-", "shadow"):
        (outside / file).write_text("of:the:host\n")
    link = tmp_path / "tree" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(outside)
    before = outside.stat().st_mtime_ns
    normalise(tmp_path / "tree", EPOCH)
    assert {path.read_text() for path in outside.iterdir()} == {"of:the:host\n"}
    assert len(list(outside.iterdir())) == 4
    assert outside.stat().st_mtime_ns == before


def test_where_a_package_came_from(tmp_path: Path) -> None:
    site = tmp_path / "opt" / "site-packages"
    (tmp_path / "opt" / "source").mkdir(parents=True)
    origins = {
        "folder": "file:///home/somebody/folder",
        "editable": "file:///opt/source",
        "commit": "https://host/repository",
    }
    for name, url in origins.items():
        info = site / f"{name}-1.dist-info"
        info.mkdir(parents=True)
        (info / "direct_url.json").write_text(json.dumps({"url": url}))
        (info / "uv_cache.json").write_text(json.dumps({"timestamp": time.time()}))
        rows = [f'"{name},x.py",sha256=A,1']
        rows += [f"{info.name}/{file},," for file in ("direct_url.json", "uv_cache.json", "RECORD")]
        (info / "RECORD").write_text("\n".join(rows) + "\n")
    normalise(tmp_path, EPOCH)
    left = {path.parent.name for path in site.glob("*/direct_url.json")}
    assert left == {"editable-1.dist-info", "commit-1.dist-info"}
    assert list(site.glob("*/uv_cache.json")) == []
    for info in site.iterdir():
        with (info / "RECORD").open(newline="") as file:
            listed = {row[0].rpartition("/")[2] for row in csv.reader(file)}
        there = {path.name for path in info.iterdir()}
        assert listed == there | {f"{info.name.partition('-')[0]},x.py"}


def test_a_file_that_cannot_be_changed_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "etc" / "machine-id").mkdir(parents=True)
    (tmp_path / ".singularity.d").mkdir()
    (tmp_path / ".singularity.d" / "labels.json").mkdir()
    with pytest.raises(InfraError, match="cannot be normalised"):
        normalise(tmp_path, EPOCH)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("From: /home/me/base.sif\n", "From: base.sif\n"),
        ("from: ../base.sif\n", "from: base.sif\n"),
        ("From: debian:bookworm-slim\n", "From: debian:bookworm-slim\n"),
        ("From: registry.site/team/base:1\n", "From: registry.site/team/base:1\n"),
        ("%files\n  /tmp/x/a b\n%post\n  /tmp/x/a b\n", "%files\n  a b\n%post\n  /tmp/x/a b\n"),
        ("%files from build\n  /opt/a /opt/a\n", "%files from build\n  /opt/a /opt/a\n"),
        ("%files\n  /tmp/folder/ /opt", "%files\n  folder /opt"),
    ],
)
def test_paths_of_the_host_in_a_definition(before: str, after: str) -> None:
    assert without_host_paths(before) == after


def test_the_number_of_processors_changes_nothing(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    for number in range(40):
        (tree / f"{number}").write_bytes(bytes(range(number + 1)) * 5_000)
    made = []
    for processors in (1, 4):
        made.append(tmp_path / f"{processors}.squashfs")
        squash(tree, made[-1], epoch=EPOCH, processors=processors)
    assert sha256(made[0]) == sha256(made[1])


def test_a_failed_squash_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InfraError, match="mksquashfs"):
        squash(tmp_path / "none", tmp_path / "made", epoch=EPOCH, processors=1)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "tree").mkdir()
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")  # a site's, which mksquashfs refuses beside ours
    squash(tmp_path / "tree", tmp_path / "made", epoch=EPOCH, processors=os.cpu_count() or 1)
    assert (tmp_path / "made").exists()
