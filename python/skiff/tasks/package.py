"""A Python package from an index as material for tasks: its sdist unpacked, and what to install.

The index is reached through pip and uv with the user's own settings. Not covered: packages whose
sdist leaves its tests out, and packages that must be compiled.
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from skiff.errors import InfraError, TaskError
from skiff.tasks.store import skiff_home

TEST_FOLDERS = frozenset({"test", "tests", "testing"})
_EXTRAS = "test,tests,testing"  # an extra that a package lacks is ignored
_DOWNLOAD_SECONDS = 600


@dataclass(frozen=True)
class Package:
    """An unpacked source distribution.

    sdist    the archive
    root     the folder it was unpacked to
    modules  the installed modules as paths below root, e.g. src/toolz/core.py
    tests    the test files as paths below root
    prefix   what goes on sys.path: '' or 'src'
    site     a folder of everything installed beside the package: pytest and dependencies
    """

    name: str
    version: str
    sdist: Path
    root: Path
    modules: tuple[str, ...]
    tests: tuple[str, ...]
    prefix: str
    site: Path

    @property
    def test_roots(self) -> tuple[str, ...]:
        """The outermost test folders, and test files outside of any."""
        roots = (_outermost_test_folder(path) or path for path in self.tests)
        return tuple(sorted(set(roots)))


def fetch(requirement: str, *, python: str, extra: Sequence[str] = ()) -> Package:
    """Download and unpack `name` or `name==version`; cached below $SKIFF_HOME.

    `python` is the version that will run it (e.g. '3.11'), `extra` further requirements of its
    tests. Raises TaskError when the sdist can't be had or holds no tests.
    """
    cache = skiff_home() / "packages"
    cache.mkdir(parents=True, exist_ok=True)
    return unpack(_download(requirement, cache), cache, python=python, extra=extra)


def unpack(sdist: Path, cache: Path, *, python: str, extra: Sequence[str] = ()) -> Package:
    """Unpack an sdist below `cache` and install its dependencies beside it."""
    name, _, version = sdist.name.removesuffix(".tar.gz").rpartition("-")
    folder = cache / f"{name}-{version}"
    shutil.rmtree(folder, ignore_errors=True)
    with tarfile.open(sdist) as archive:
        archive.extractall(folder, filter="data")
    root = next(path for path in folder.iterdir() if path.is_dir())
    site = folder / "site"
    _install([f"{sdist}[{_EXTRAS}]", "pytest", *extra], site, python)
    installed = _take_out_package(site, name)
    prefix = "src" if any((root / "src" / module).exists() for module in installed) else ""
    found = (str(PurePosixPath(prefix, module)) for module in installed)
    python_files = [path.relative_to(root).as_posix() for path in sorted(root.rglob("*.py"))]
    tests = tuple(path for path in python_files if _is_test_file(path))
    if not tests:
        raise TaskError(
            "its source distribution holds no tests",
            where=f"{name} {version}",
            remedy="take another package or version; `test_*.py` files are what is looked for",
        )
    return Package(
        name=normalized(name),
        version=version,
        sdist=sdist,
        root=root,
        modules=tuple(m for m in found if m in python_files and _is_code(m)),
        tests=tests,
        prefix=prefix,
        site=site,
    )


def normalized(name: str) -> str:
    """The one spelling of a package's name that indexes agree on."""
    return re.sub(r"[-_.]+", "-", name).lower()


def _download(requirement: str, cache: Path) -> Path:
    """Only the package itself is wanted as source; its build tools may come as wheels."""
    name = re.split(r"[=<>!~\[ ]", requirement, maxsplit=1)[0]
    command = [*_pip(), "download", "--quiet", "--no-deps", "--no-binary", name]
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        _run([*command, "--dest", folder, requirement], f"the sources of {requirement}")
        sdists = list(Path(folder).glob("*.tar.gz"))
        if not sdists:
            raise TaskError(
                "the index holds no source distribution (.tar.gz)",
                where=requirement,
                remedy="take another package or version",
            )
        return sdists[0].replace(cache / sdists[0].name)


def _install(requirements: Sequence[str], site: Path, python: str) -> None:
    command = ["uv", "pip", "install", "--quiet", "--python-version", python]
    if shutil.which("uv") is None:
        raise InfraError("uv is not installed", where="packages", remedy="install uv")
    _run([*command, "--target", str(site), *requirements], f"dependencies of {requirements[0]}")
    shutil.rmtree(site / "bin", ignore_errors=True)  # its scripts name the host's interpreter


def _take_out_package(site: Path, name: str) -> list[str]:
    """Remove the package's own modules from `site`, keep its metadata; return their paths.

    The tests must run the sources in the work folder, not a second copy.
    """
    wanted = normalized(name)
    for record in site.glob("*.dist-info/RECORD"):
        if normalized(record.parent.name.split("-")[0]) == wanted:
            lines = record.read_text(encoding="utf-8").splitlines()
            paths = [line.split(",")[0] for line in lines]
            own = [path for path in paths if ".." not in path and ".dist-info/" not in path]
            for path in own:
                (site / path).unlink()
            return [path for path in own if path.endswith(".py")]
    raise TaskError("its metadata was not installed", where=name, remedy="take another package")


def _pip() -> list[str]:
    if importlib.util.find_spec("pip") is not None:
        return [sys.executable, "-m", "pip"]
    return ["uv", "tool", "run", "pip"]


def _run(command: Sequence[str], what: str) -> None:
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_DOWNLOAD_SECONDS,
            check=False,
        )
    except FileNotFoundError as error:
        raise InfraError(
            f"{command[0]} is not installed", where="packages", remedy="install uv"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise InfraError(f"no answer after {_DOWNLOAD_SECONDS} s", where=what) from error
    if done.returncode != 0:
        words = "\n".join(done.stderr.strip().splitlines()[-5:])
        raise TaskError(
            f"could not be fetched: {words}",
            where=what,
            remedy="check the name and that the package index is reachable",
        )


def _is_test_file(path: str) -> bool:
    name = PurePosixPath(path).name
    return name.startswith("test_") or name.endswith("_test.py") or name == "tests.py"


def _is_code(path: str) -> bool:
    return not _is_test_file(path) and _outermost_test_folder(path) is None


def _outermost_test_folder(path: str) -> str | None:
    parts = PurePosixPath(path).parts[:-1]
    for depth, part in enumerate(parts):
        if part in TEST_FOLDERS:
            return "/".join(parts[: depth + 1])
    return None
