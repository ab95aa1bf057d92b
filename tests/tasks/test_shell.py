"""The shell family: balanced, disjoint, and each fault has exactly one repair."""

import subprocess
from collections import Counter
from pathlib import Path

import pytest
from skiff.tasks import shell
from skiff.tasks.shell import KINDS, repertoire, tasks
from skiff.tasks.task import ScriptGrade, Task


def kind_of(task: Task) -> str:
    return task.id.removeprefix("shell:").split("-")[0]


def names_of(task: Task) -> str:
    return task.id.partition("-")[2]


ONE_OF_EACH_KIND = list({kind_of(task): task for task in tasks("validation")}.values())


def lay_out(task: Task, folder: Path) -> None:
    for file in task.files:
        path = folder / file.path.removeprefix("/folder/")
        path.write_text(file.content)
        path.chmod(file.mode)


def sh(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["sh", "-c", command], cwd=folder, capture_output=True, text=True)


def test_sizes_and_ids() -> None:
    train, validation = tasks("train"), tasks("validation")
    assert len(train) >= 400
    assert len(validation) == 64
    assert len({task.id for task in train + validation}) == len(train) + len(validation)


def test_splits_share_no_folder() -> None:
    assert not {names_of(t) for t in tasks("train")} & {names_of(t) for t in tasks("validation")}


@pytest.mark.parametrize("length", [8, 200, 1024])
def test_every_prefix_is_balanced(length: int) -> None:
    counts = Counter(kind_of(task) for task in tasks("train")[:length])
    assert set(counts.values()) == {length // len(KINDS)}


def test_the_prompt_says_nothing_about_the_kind() -> None:
    prompts: dict[str, set[str]] = {}
    kinds: dict[str, set[str]] = {}
    for task in tasks("train"):
        prompts.setdefault(names_of(task), set()).add(task.prompt)
        kinds.setdefault(names_of(task), set()).add(kind_of(task))
    assert all(len(found) == 1 for found in prompts.values())
    assert all(len(found) == len(KINDS) for found in kinds.values())


def test_same_seed_same_tasks() -> None:
    assert tasks("train", seed=3) == tasks("train", seed=3)
    assert tasks("train", seed=3) != tasks("train", seed=4)


def test_words_only() -> None:
    for task in tasks("validation"):
        assert not any(character.isdigit() for character in task.prompt + "".join(task.solution))


def test_the_repertoire_of_another_source_is_an_error() -> None:
    other = tasks("validation")[0].model_copy(update={"id": "r2e:numpy"})
    with pytest.raises(ValueError, match="values to unpack"):
        repertoire(other)


@pytest.mark.parametrize("task", ONE_OF_EACH_KIND, ids=kind_of)
def test_exactly_one_repair_solves_it(task: Task, tmp_path: Path) -> None:
    check, right = task.solution
    solved = []
    for number, repair in enumerate(repertoire(task)):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay_out(task, folder)
        before = sh(check, folder)
        assert before.returncode == 1
        assert before.stdout.startswith("FAIL: ")
        assert before.stdout.count("\n") == 1
        sh(repair, folder)
        if sh(check, folder).returncode == 0:
            solved.append(repair)
    assert solved == [right]


@pytest.mark.parametrize("task", ONE_OF_EACH_KIND, ids=kind_of)
def test_a_wrong_try_can_be_made_good(task: Task, tmp_path: Path) -> None:
    """No wrong repair but a lost or blocked name spoils the folder for the right one."""
    check, right = task.solution
    spoiled = []
    for number, repair in enumerate(repertoire(task)):
        folder = tmp_path / str(number)
        folder.mkdir()
        lay_out(task, folder)
        sh(repair, folder)
        sh(right, folder)
        if sh(check, folder).returncode != 0:
            spoiled.append(repair.split()[0])
    assert len(spoiled) <= 4, spoiled


def test_symptoms_differ_by_kind() -> None:
    symptoms = {
        kind.name: kind.symptom(shell.Folder("a.txt", "b.txt", "w", ("z", "x", "y")))
        for kind in KINDS
    }
    assert len(set(symptoms.values())) == len(KINDS)


def test_the_hidden_check_means_the_same_as_the_visible_one() -> None:
    for task in tasks("validation"):
        assert isinstance(task.grade, ScriptGrade)
        assert task.grade.script == next(
            file.content for file in task.files if file.path.endswith("check.sh")
        )
