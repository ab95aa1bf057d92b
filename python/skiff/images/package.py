"""Images of a Python package on top of the sandbox image: sources, dependencies, tests, history.

Everything is laid out on the host and copied in one layer; the build only compiles the byte code of
the dependencies, so it needs no network. Three layouts of one package:

plain     sources in /testbed, environment in /opt/venv, a second copy of the tests in /opt/tests
r2e       as R2E-Gym's images: environment in /testbed/.venv, run_tests.sh, /r2e_tests, history
swebench  as SWE-bench's images: environment in /opt/miniconda3/envs/testbed, history

Not covered: compiled packages; other versions of Python than the sandbox image's.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from skiff.errors import InfraError
from skiff.images.sandbox import LABEL, PYTHON, image_label, sandbox_recipe
from skiff.podman import build
from skiff.tasks.package import Package
from skiff.tasks.shell import IMAGE
from skiff.tasks.synthetic import Mutation

WORKDIR = "testbed"
PRISTINE = "opt/tests"
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_RUN_TESTS = "PYTHONWARNINGS=ignore .venv/bin/python -W ignore -m pytest -rA r2e_tests\n"
# What `source activate ENV` does in conda, as far as running its programs goes.
_ACTIVATE = 'export CONDA_PREFIX="/opt/miniconda3/envs/$1" PATH="/opt/miniconda3/envs/$1/bin:$PATH"'
_FORMAT = "2"  # raise it when the layouts below change: images are then built again


@dataclass(frozen=True)
class History:
    """The two commits of an image with history: the bug (checked out) and its fix (ahead of it)."""

    buggy: str
    fixed: str


def ensure_plain_image(package: Package) -> str:
    """Build the image of a package unless it exists; return its name."""
    name = f"localhost/skiff/package/{package.name}:{package.version}".lower()
    digest = _digest(package)
    if image_label(name, LABEL) == digest:
        return name
    with tempfile.TemporaryDirectory(prefix="skiff-image-") as context:
        root = Path(context) / "root"
        work = _copy_sources(package, root)
        _copy_tests(package.test_roots, work, root / PRISTINE)
        _virtual_environment(root, "opt/venv", package)
        path = f"/opt/venv/bin:{_SYSTEM_PATH}"
        settings = [f"ENV PATH={path}", f"LABEL {LABEL}={digest}"]
        _build(Path(context), name, "opt/venv", settings)
    return name


def build_r2e_image(package: Package, mutation: Mutation, name: str) -> History:
    """An image as R2E-Gym publishes them: HEAD has the bug, the fix is in the history, and the
    tests lie in /r2e_tests only."""
    with tempfile.TemporaryDirectory(prefix="skiff-image-") as context:
        root = Path(context) / "root"
        work = _copy_sources(package, root)
        _move_tests(package.test_roots, work, root / "r2e_tests")
        history = _commit_history(work, mutation)
        _virtual_environment(root, f"{WORKDIR}/.venv", package)
        (work / "run_tests.sh").write_text(_RUN_TESTS)
        _build(Path(context), name, f"{WORKDIR}/.venv")
    return history


def build_swebench_image(
    package: Package, mutation: Mutation, name: str, *, unseen: Sequence[str]
) -> History:
    """An image as SWE-bench publishes them; the files `unseen` come with the fix only."""
    with tempfile.TemporaryDirectory(prefix="skiff-image-") as context:
        root = Path(context) / "root"
        work = _copy_sources(package, root)
        history = _commit_history(work, mutation, unseen)
        environment = "opt/miniconda3/envs/testbed"
        _virtual_environment(root, environment, package)
        activate = root / "opt/miniconda3/bin/activate"
        activate.parent.mkdir(parents=True)
        activate.write_text(_ACTIVATE + "\n")
        _build(Path(context), name, environment)
    return history


def _digest(package: Package) -> str:
    """Changes with the sources, the dependencies, the base image and the layouts."""
    names = sorted(path.name for path in package.site.glob("*.dist-info"))
    parts = (_FORMAT, sandbox_recipe().digest, *names)
    content = package.sdist.read_bytes() + "\n".join(parts).encode()
    return hashlib.sha256(content).hexdigest()[:16]


def _copy_sources(package: Package, root: Path) -> Path:
    work = root / WORKDIR
    shutil.copytree(package.root, work, symlinks=True)
    return work


def _copy_tests(test_roots: Sequence[str], work: Path, target: Path) -> None:
    for name in test_roots:
        source, copy = work / name, target / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, copy, symlinks=True)
        else:
            shutil.copy2(source, copy)


def _move_tests(test_roots: Sequence[str], work: Path, target: Path) -> None:
    """A single test folder becomes `target`, as in R2E-Gym; several keep their places below it."""
    for name in test_roots:
        source = work / name
        alone = len(test_roots) == 1 and source.is_dir()
        goal = target if alone else target / name
        goal.parent.mkdir(parents=True, exist_ok=True)
        source.rename(goal)


def _virtual_environment(root: Path, place: str, package: Package) -> None:
    """What `python3 -m venv` and an editable install would leave at /`place`."""
    home = root / place
    site = home / "lib" / f"python{PYTHON}" / "site-packages"
    shutil.copytree(package.site, site)
    (site / "editable.pth").write_text(f"/{WORKDIR}/{package.prefix}".rstrip("/") + "\n")
    (home / "pyvenv.cfg").write_text("home = /usr/bin\ninclude-system-site-packages = false\n")
    programs = home / "bin"
    programs.mkdir()
    for name in ("python", "python3", f"python{PYTHON}"):
        (programs / name).symlink_to("/usr/bin/python3")


def _commit_history(work: Path, mutation: Mutation, unseen: Sequence[str] = ()) -> History:
    """Two commits on `main`, the first one checked out. Environment and byte code stay out."""
    (work / ".git/info").mkdir(parents=True)
    _git(work, "init", "--quiet", "--initial-branch=main")
    (work / ".git/info/exclude").write_text(".venv/\n__pycache__/\n*.pyc\n")
    kept = {name: (work / name).read_bytes() for name in unseen}
    for name in unseen:
        (work / name).unlink()
    changed = work / mutation.path
    changed.write_text(mutation.mutated, encoding="utf-8", newline="")
    buggy = _commit(work, "before")
    changed.write_text(mutation.original, encoding="utf-8", newline="")
    for name, content in kept.items():
        (work / name).write_bytes(content)
    fixed = _commit(work, "fix")
    _git(work, "checkout", "--quiet", "--detach", buggy)
    return History(buggy, fixed)


def _commit(work: Path, message: str) -> str:
    _git(work, "add", "--all")
    _git(work, "commit", "--quiet", "--no-verify", "--no-gpg-sign", "--message", message)
    return _git(work, "rev-parse", "HEAD")


def _git(work: Path, *arguments: str) -> str:
    """Run git with neither the user's settings nor the clock, so that commit ids are repeatable."""
    who = {f"GIT_{role}_{what}": value for role in ("AUTHOR", "COMMITTER") for what, value in _WHO}
    try:
        done = subprocess.run(
            ["git", "-C", str(work), *arguments],
            env=os.environ | who | {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=True,
        )
    except FileNotFoundError as error:
        raise InfraError("git is not installed", where="images", remedy="install git") from error
    except subprocess.CalledProcessError as error:
        raise InfraError(error.stderr.strip(), where=f"git {arguments[0]}") from error
    return done.stdout.strip()


_WHO = (
    ("NAME", "author"),
    ("EMAIL", "author@localhost"),
    ("DATE", "2025-01-01T00:00:00Z"),
)


def _build(context: Path, name: str, environment: str, settings: Sequence[str] = ()) -> None:
    # Without byte code every test run compiles pytest anew: a third of a short run.
    compile_all = f"RUN python3 -m compileall -q /{environment}"
    lines = [f"FROM {IMAGE}", "COPY root/ /", compile_all, f"WORKDIR /{WORKDIR}", *settings]
    (context / "Dockerfile").write_text("\n".join(lines) + "\n")
    build(context, name)
