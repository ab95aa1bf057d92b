"""Task specs, the skip list and Skiff's own JSON lines."""

from pathlib import Path

import pytest
from skiff.errors import TaskError
from skiff.tasks import shell
from skiff.tasks.sources import find, read_skip_list, resolve
from skiff.tasks.store import read_tasks, synthetic_path, write_tasks


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SKIFF_HOME", str(tmp_path))
    return tmp_path


def test_limit_and_skip() -> None:
    first, second, third = resolve("shell:train", limit=3)
    assert resolve("shell:train", limit=2, skip={first.id}) == [second, third]


def test_own_json_lines(tmp_path: Path) -> None:
    tasks = shell.tasks("validation")
    write_tasks(tmp_path / "deep" / "t.jsonl", tasks)
    assert resolve(f"tasks:{tmp_path / 'deep' / 't.jsonl'}") == tasks


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ("shel:train", "unknown task source 'shel'\n.*did you mean 'shell'"),
        ("shell:validate", "unknown split 'validate'\n.*did you mean 'validation'"),
        ("shell:", "names no tasks"),
        ("shell", "names no tasks"),
        ("nonsense", "unknown task source 'nonsense'\n.*valid: shell, synthetic"),
        ("synthetic:toolz", "no synthetic tasks of 'toolz'.*\n.*skiff tasks build synthetic toolz"),
        ("synthetic:/etc/**", r"no synthetic tasks of '/etc/\*\*'"),
        ("r2e:/no/where.parquet", "does not exist"),
        ("r2e:" + "a" * 300, "cannot be looked into: File name too long"),
    ],
)
def test_bad_specs(spec: str, complaint: str) -> None:
    with pytest.raises(TaskError, match=complaint):
        resolve(spec)


def test_synthetic_by_package_and_by_version() -> None:
    tasks = shell.tasks("validation")
    write_tasks(synthetic_path("toolz", "1.0"), tasks[:1])
    write_tasks(synthetic_path("toolz-extra", "3.0"), tasks[2:3])
    assert resolve("synthetic:toolz") == tasks[:1]
    assert resolve("synthetic:toolz-1.0") == tasks[:1]
    assert resolve("synthetic:toolz-extra") == tasks[2:3]


def test_an_id_twice(tmp_path: Path) -> None:
    task = shell.tasks("validation")[0]
    write_tasks(tmp_path / "t.jsonl", [task, task])
    with pytest.raises(TaskError, match="twice"):
        resolve(f"tasks:{tmp_path / 't.jsonl'}")


def test_a_line_that_is_no_task(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    write_tasks(path, shell.tasks("validation")[:1])
    path.write_text(path.read_text() + '{"id": "x"}\n')
    with pytest.raises(TaskError, match=r"t\.jsonl, line 2: is no Task: source: Field required"):
        read_tasks(path)


def test_find_names_the_nearest() -> None:
    tasks = shell.tasks("validation")
    assert find(tasks, tasks[3].id) == tasks[3]
    with pytest.raises(TaskError, match=f"did you mean '{tasks[3].id}'"):
        find(tasks, tasks[3].id + "x")


def test_skip_list(tmp_path: Path) -> None:
    path = tmp_path / "skip.txt"
    path.write_text("# made by hand\n\nr2e:aiohttp-1 needs the network\nr2e:tornado-2\n")
    assert read_skip_list(path) == {"r2e:aiohttp-1", "r2e:tornado-2"}
    with pytest.raises(TaskError, match="skip list cannot be read"):
        read_skip_list(tmp_path / "none.txt")
