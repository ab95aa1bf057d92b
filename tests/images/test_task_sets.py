"""From a small source distribution made here to images and valid tasks of all three shapes."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet
import pytest
from rich.progress import Progress
from skiff.config import Config
from skiff.errors import InfraError, TaskError
from skiff.images import task_sets
from skiff.images.package import ensure_plain_image
from skiff.images.sandbox import PYTHON, ensure_sandbox_image
from skiff.podman import run_podman
from skiff.sandbox.client import RuntimeClient, SandboxSpec
from skiff.tasks.lifecycle import extract_patch, grade, prepare
from skiff.tasks.package import Package, fetch, normalized, unpack
from skiff.tasks.sources import resolve
from skiff.tasks.task import Task
from skiff.tasks.validate import validate

IMAGES = (
    "localhost/skiff/package/tiny-sums:1.2",
    "localhost/skiff/r2e/tiny-sums_final:1.2",
    "localhost/swebench/sweb.eval.x86_64.skiff_1776_tiny-sums-0:latest",
)
PROJECT = """
[build-system]
requires = ["setuptools"]
build-backend = "setuptools.build_meta"
[project]
name = "Tiny_Sums"
version = "1.2"
[tool.setuptools]
package-dir = {"" = "src"}
packages = ["tiny_sums"]
"""
FILES = {
    "pyproject.toml": PROJECT,
    "PKG-INFO": "Metadata-Version: 2.1\nName: Tiny_Sums\nVersion: 1.2\n",
    "src/tiny_sums/__init__.py": (
        "def total(values):\n    result = 0\n    for value in values:\n        result += value\n"
        "    return result\n\n\ndef largest(values):\n    best = None\n    for value in values:\n"
        "        if best is None or value > best:\n            best = value\n    return best\n"
    ),
    "tests/test_tiny.py": (
        "import pytest\nfrom tiny_sums import largest, total\n\n\n"
        "@pytest.mark.parametrize('values, expected', [([1, 2], 3), ([], 0), ([5], 5)])\n"
        "def test_total(values, expected):\n    assert total(values) == expected\n\n\n"
        "def test_largest():\n    assert largest([1, 3, 2]) == 3\n    assert largest([]) is None\n"
    ),
}


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Package]:
    folder = tmp_path_factory.mktemp("package")
    for name, text in FILES.items():
        path = folder / "tiny_sums-1.2" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    sdist = folder / "tiny_sums-1.2.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        archive.add(folder / "tiny_sums-1.2", "tiny_sums-1.2")
    yield unpack(sdist, folder / "cache", python=PYTHON)
    run_podman(["image", "rm", "--force", "--ignore", *IMAGES])


@pytest.fixture(autouse=True)
def from_here(package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is the only thing replaced."""
    ensure_sandbox_image()
    monkeypatch.setenv("SKIFF_HOME", str(tmp_path))
    monkeypatch.setattr(task_sets, "fetch", lambda *_, **__: package)
    monkeypatch.setattr(task_sets, "ensure_sandbox_image", lambda: False)


async def all_valid(tasks: list[Task], client: RuntimeClient, config: Config) -> bool:
    with Progress(disable=True) as progress:
        verdicts = await validate(tasks, client, config, progress=progress)
    assert all(verdict.valid for verdict in verdicts), verdicts
    return True


def test_what_an_sdist_holds(package: Package) -> None:
    assert (package.name, package.version, package.prefix) == ("tiny-sums", "1.2", "src")
    assert package.modules == ("src/tiny_sums/__init__.py",)
    assert package.tests == ("tests/test_tiny.py",)
    assert package.test_roots == ("tests",)
    assert (package.site / "pytest").is_dir()
    assert not list(package.site.glob("tiny_sums/*.py"))
    assert list(package.site.glob("tiny_sums-1.2.dist-info"))


async def test_synthetic(
    runtime_client: RuntimeClient, sandbox_config: Config, package: Package
) -> None:
    with Progress(disable=True) as progress:
        path, tasks = await task_sets.build_synthetic(
            "tiny-sums", runtime_client, sandbox_config, count=2, seed=0, progress=progress
        )
    assert len(tasks) == 2
    assert resolve("synthetic:tiny-sums") == resolve(f"tasks:{path}") == tasks
    assert "tests/test_tiny.py::test_" in tasks[0].prompt
    assert "src/tiny_sums" not in tasks[0].prompt
    assert await all_valid(tasks, runtime_client, sandbox_config)
    assert ensure_plain_image(package) == tasks[0].image


async def test_the_agent_meets_the_bug_but_not_the_original(
    runtime_client: RuntimeClient, sandbox_config: Config
) -> None:
    with Progress(disable=True) as progress:
        _, (task,) = await task_sets.build_synthetic(
            "tiny-sums", runtime_client, sandbox_config, count=1, seed=1, progress=progress
        )
    gold = [line[1:] for line in task.gold_patch.splitlines() if line.startswith("+  ")]
    spec = SandboxSpec.from_config(sandbox_config, image=task.image, workdir=task.workdir)
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=60)
        assert await extract_patch(sandbox, task, timeout=60) == b""
        run = await sandbox.run("python -m pytest -q tests", timeout=60)
        assert run.exit_code == 1, run.text
        module = (await sandbox.read("/testbed/src/tiny_sums/__init__.py")).decode()
        assert gold[0] not in module.splitlines()
        found = await sandbox.run("git rev-list --all --count", timeout=60)
        assert found.text.strip() == "1"
        for command in task.solution:
            assert (await sandbox.run(command, timeout=60)).exit_code == 0
        patch = await extract_patch(sandbox, task, timeout=60)
    result = await grade(runtime_client, spec, task, patch, timeout=60)
    assert result.reward == 1.0, result


async def test_r2e_shaped(runtime_client: RuntimeClient, sandbox_config: Config) -> None:
    with Progress(disable=True) as progress:
        path = await task_sets.build_r2e_shaped(
            "tiny-sums", runtime_client, sandbox_config, seed=0, progress=progress
        )
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert set(row) == R2E_FIELDS
    (task,) = resolve(f"r2e:{path}")
    assert await all_valid([task], runtime_client, sandbox_config)
    spec = SandboxSpec.from_config(
        sandbox_config, image=task.image, workdir=task.workdir, env=task.env
    )
    async with runtime_client.sandbox(spec) as sandbox:
        # The fix is in the image's history, until the task is prepared.
        assert (
            await sandbox.run(f"git cat-file -e {row['commit_hash']}", timeout=60)
        ).exit_code == 0
        await prepare(sandbox, task, timeout=60)
        assert (await sandbox.run(f"git cat-file -e {row['commit_hash']}", timeout=60)).exit_code
        seen = await sandbox.run("python -c 'import tiny_sums'; ls -A; ls /r2e_tests", timeout=60)
        assert "run_tests.sh" not in seen.text
        assert "No such file" in seen.text
        assert "Error" not in seen.text


async def test_swebench_shaped(runtime_client: RuntimeClient, sandbox_config: Config) -> None:
    with Progress(disable=True) as progress:
        path = await task_sets.build_swebench_shaped(
            "tiny-sums", runtime_client, sandbox_config, seed=0, progress=progress
        )
    (row,) = pyarrow.parquet.read_table(path).to_pylist()
    assert set(row) == SWEBENCH_FIELDS
    (task,) = resolve(f"swebench:{path}")
    assert await all_valid([task], runtime_client, sandbox_config)


async def test_a_package_whose_tests_cannot_run(
    runtime_client: RuntimeClient,
    sandbox_config: Config,
    package: Package,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = replace(package, tests=("tests/no_such_file.py",))
    monkeypatch.setattr(task_sets, "fetch", lambda *_, **__: broken)
    with Progress(disable=True) as progress, pytest.raises(TaskError, match="none of its tests"):
        await task_sets.build_synthetic(
            "tiny-sums", runtime_client, sandbox_config, count=1, seed=0, progress=progress
        )


def test_an_sdist_without_tests(package: Package, tmp_path: Path) -> None:
    sdist = tmp_path / "tiny_sums-1.2.tar.gz"
    with tarfile.open(sdist, "w:gz") as archive:
        for name in FILES:
            if not name.startswith("tests"):
                archive.add(package.root / name, f"tiny_sums-1.2/{name}")
    with pytest.raises(TaskError, match="holds no tests"):
        unpack(sdist, tmp_path / "cache", python=PYTHON)


def test_a_package_is_found_and_downloaded(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.sdist.parent))
    fetched = fetch("Tiny.Sums==1.2", python=PYTHON)
    assert fetched.sdist == tmp_path / "packages" / package.sdist.name
    assert (fetched.name, fetched.version) == ("tiny-sums", "1.2")
    assert fetched.tests == package.tests


def test_a_package_that_does_not_exist(
    package: Package, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(package.sdist.parent))
    with pytest.raises(TaskError, match="the sources of tiny-sums==9: could not be fetched"):
        fetch("tiny-sums==9", python=PYTHON)
    assert not list((tmp_path / "packages").iterdir())


def test_uv_is_missing(monkeypatch: pytest.MonkeyPatch, package: Package, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InfraError, match="uv is not installed"):
        unpack(package.sdist, tmp_path / "cache", python=PYTHON)


def test_names_have_one_spelling() -> None:
    assert normalized("Zope.Interface_x") == "zope-interface-x"


R2E_FIELDS = {
    "repo_name", "docker_image", "commit_hash", "parsed_commit_content",
    "execution_result_content", "modified_files", "modified_entity_summaries", "relevant_files",
    "num_non_test_files", "num_non_test_func_methods", "num_non_test_lines", "prompt",
    "problem_statement", "expected_output_json",
}  # fmt: skip
SWEBENCH_FIELDS = {
    "repo", "instance_id", "base_commit", "patch", "test_patch", "problem_statement", "hints_text",
    "created_at", "version", "FAIL_TO_PASS", "PASS_TO_PASS", "environment_setup_commit",
    "difficulty",
}  # fmt: skip
