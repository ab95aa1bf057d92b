"""An unpacked image tree without the marks of its build, and the squashfs made of it.

Two builds of one definition differ in what follows; `normalise` takes the difference out:
- times: of every file, in compiled Python files (the time of their source) and in /etc/shadow (the
  day of the last change of a password), and the label with the build date;
- names: paths of the build host in the definition and labels, its /etc/hostname and
  /etc/resolv.conf, the machine-id, pip's and uv's notes on the folder a package came from;
- leftovers that nothing needs: logs, lists and caches of apt, dpkg, debconf, ldconfig and of the
  account root, temporary files, the previous versions that passwd and dpkg keep.

What CPython 3.12 compiles does not depend on the process or its number of workers (compared: 6150
files of torch, transformers and others), so but for that time compiled files stay as they are.

Not covered: packages that were installed at another path, which compiled files and scripts name;
hard links into a package cache, whose files would be changed as well.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import stat
import struct
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from skiff.apptainer import squashfs_tool
from skiff.errors import InfraError

SQUASH_SECONDS = 3600.0
ZSTD_LEVEL = 3  # 1.7 GB of a trainer's packages: 6 s on 2 cores, with gzip 101 s for the same size
_DAY = 86_400
_EMPTIED = ("etc/hostname", "etc/machine-id", "etc/resolv.conf", "var/lib/dbus/machine-id")
_REMOVED = (
    "etc/group-",
    "etc/gshadow-",
    "etc/passwd-",
    "etc/shadow-",
    "etc/subgid-",
    "etc/subuid-",
    "root/.cache",
    "tmp/*",
    "var/cache/apt/*.bin",
    "var/cache/apt/archives/*.deb",
    "var/cache/debconf/*-old",
    "var/cache/ldconfig/aux-cache",
    "var/lib/dpkg/*-old",
    "var/tmp/*",
)
_WITHOUT_FILES = ("run", "var/lib/apt/lists", "var/log")  # programs miss the folders themselves
_PYC_CHECKED_BY_HASH = 1  # PEP 552: bit 0 of the flags
_SOURCE_TIME = 8  # offset in a .pyc file whose source is checked by its time


def normalise(tree: Path, epoch: int) -> None:
    """Make `tree` the same for every build of one definition; `epoch` in seconds since 1970.

    The tree is the caller's and shares no inode with another (hard links from a package cache).
    Raises InfraError when a file can't be changed.
    """
    try:
        for name in _EMPTIED:
            if _is_own(tree / name, tree):
                (tree / name).write_bytes(b"")
        for name in _REMOVED:
            folder, pattern = (tree / name).parent, PurePosixPath(name).name
            if _is_own(folder, tree):
                for path in folder.glob(pattern):
                    _remove(path)
        for name in _WITHOUT_FILES:
            if _is_own(tree / name, tree):
                for path in _files(tree / name):
                    path.unlink()
        if _is_own(tree / "etc" / "shadow", tree):
            _without_days(tree / "etc" / "shadow", epoch)
        if _is_own(tree / ".singularity.d", tree):
            _clean_description(tree / ".singularity.d", epoch)
        for path in _files(tree):
            if path.suffix == ".pyc":
                _set_source_time(path, epoch)
            elif path.name in ("direct_url.json", "uv_cache.json"):
                _forget_origin(path, tree)
        for path in _everything(tree):
            os.utime(path, (epoch, epoch), follow_symlinks=False)
    except OSError as error:
        raise InfraError(f"cannot be normalised: {error}", where=str(tree)) from error


def squash(tree: Path, target: Path, *, epoch: int, processors: int) -> None:
    """Make the squashfs `target` of a normalised tree, all owned by root, without extended
    attributes. The same tree gives the same bytes, whatever the number of processors.

    Needs squashfs-tools 4.5 or newer. Raises InfraError; `target` is then not there.
    """
    partial = target.with_name(f".{target.name}.partial")
    partial.unlink(missing_ok=True)
    command = [squashfs_tool("mksquashfs"), str(tree), str(partial)]
    command += ["-noappend", "-no-xattrs", "-all-root", "-exit-on-error", "-quiet", "-no-progress"]
    command += ["-mkfs-time", str(epoch), "-all-time", str(epoch), "-processors", str(processors)]
    command += ["-comp", "zstd", "-Xcompression-level", str(ZSTD_LEVEL)]
    try:
        done = subprocess.run(
            command,
            # It refuses times on its command line when this is set as well.
            env={name: os.environ[name] for name in os.environ if name != "SOURCE_DATE_EPOCH"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=SQUASH_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            words = done.stderr.strip()[-500:]
            raise InfraError(f"exit {done.returncode}: {words}", where="mksquashfs")
        partial.replace(target)
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no end after {SQUASH_SECONDS:g} s", where="mksquashfs") from error
    finally:
        partial.unlink(missing_ok=True)


def without_host_paths(definition: str) -> str:
    """A definition whose `From:` and `%files` name files of the build host without their folder.

    Names of images in registries and files of earlier stages stay as they are.
    """
    lines = []
    copying = False  # in a %files section, whose first words are paths of the host
    for line in definition.splitlines(keepends=True):
        section = re.match(r"\s*%(\w+)(.*)", line)
        if section:
            copying = section[1] == "files" and not section[2].strip()
            lines.append(line)
        elif copying:
            lines.append(re.sub(r"^(\s*)(/\S+)", _last_part, line))
        else:
            lines.append(re.sub(r"^(\s*from:\s*)([./]\S*)", _last_part, line, flags=re.IGNORECASE))
    return "".join(lines)


def _last_part(found: re.Match[str]) -> str:
    return found[1] + PurePosixPath(found[2]).name


def _clean_description(folder: Path, epoch: int) -> None:
    """Rewrite what Apptainer notes in the image: labels, and the definitions of it and its base."""
    path = folder / "labels.json"
    if path.exists():
        labels: dict[str, str] = json.loads(path.read_bytes())
        for name, value in labels.items():
            if name.endswith(".build-date"):
                labels[name] = datetime.fromtimestamp(epoch, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            elif name.endswith(".deffile.from") and value.startswith(("/", ".")):
                labels[name] = PurePosixPath(value).name
        path.write_text(json.dumps(labels, indent=2, sort_keys=True) + "\n")
    for path in [folder / "Singularity", *folder.glob("bootstrap_history/*")]:
        if path.exists():
            path.write_text(without_host_paths(path.read_text()))


def _without_days(shadow: Path, epoch: int) -> None:
    fields = [line.split(":") for line in shadow.read_text().splitlines()]
    for entry in fields:
        if len(entry) > 2 and entry[2]:
            entry[2] = str(epoch // _DAY)
    shadow.write_text("".join(":".join(entry) + "\n" for entry in fields))


def _set_source_time(pyc: Path, epoch: int) -> None:
    """Keep a compiled file valid for its source, whose time is about to be `epoch`."""
    with pyc.open("r+b") as file:
        head = file.read(_SOURCE_TIME)
        if len(head) == _SOURCE_TIME and not head[4] & _PYC_CHECKED_BY_HASH:
            file.seek(_SOURCE_TIME)
            file.write(struct.pack("<I", epoch & 0xFFFFFFFF))


def _forget_origin(note: Path, tree: Path) -> None:
    """Remove a note on the folder of the build host that a package came from, or on when that was
    changed, and its mention in the package's list of files. A note on a URL of another host or on
    a folder of the image (an editable installation) stays."""
    if not note.parent.name.endswith(".dist-info"):
        return
    if note.name == "direct_url.json":
        url = urlsplit(json.loads(note.read_bytes())["url"])
        if url.scheme != "file" or (tree / unquote(url.path).lstrip("/")).exists():
            return
    note.unlink()
    record = note.parent / "RECORD"
    if record.exists():
        mention = f"{note.parent.name}/{note.name}"
        rows = csv.reader(io.StringIO(record.read_text(encoding="utf-8"), newline=""))
        kept = io.StringIO(newline="")
        csv.writer(kept, lineterminator="\n").writerows(row for row in rows if row[0] != mention)
        record.write_text(kept.getvalue(), encoding="utf-8")


def _is_own(path: Path, tree: Path) -> bool:
    """Whether `path` is there and neither it nor a folder on the way is a link, which may lead to
    a file of the host."""
    return path.exists() and path.resolve() == tree.resolve() / path.relative_to(tree)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


def _files(tree: Path) -> Iterator[Path]:
    for path in _everything(tree):
        if stat.S_ISREG(path.lstat().st_mode):
            yield path


def _everything(tree: Path) -> Iterator[Path]:
    """Every file and folder, the tree itself last."""
    for folder, folders, files in os.walk(tree, topdown=False):
        for name in (*folders, *files):
            yield Path(folder, name)
    yield tree
