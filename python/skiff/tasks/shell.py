"""`shell:train` and `shell:validation`: small repair tasks that a tiny model can learn.

Each task is a folder with one fault and a `check.sh` whose output names the symptom. The eight
kinds of fault share one prompt layout and one list of names, and every folder (file, other, word)
occurs with every kind: what to do can only be learnt by running the check.

Not covered: faults that need more than one command.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from skiff.tasks.task import File, ScriptGrade, Task

SOURCE = "shell"
IMAGE = "localhost/skiff/sandbox:1"
WORKDIR = "/folder"
CHECK = "sh check.sh"

Split = Literal["train", "validation"]

# Folders per split; each becomes len(KINDS) tasks.
FOLDERS: dict[Split, int] = {"train": 128, "validation": 8}

# Three lists without a common name: what a name stands for can be seen from the name itself, which
# spares a tiny model from learning to look up where in the prompt it stood.
FILES = (
    "agenda", "budget", "diary", "guide", "index", "layout",
    "letter", "notes", "plan", "recipe", "report", "table",
)  # fmt: skip
OTHERS = (
    "anchor", "bridge", "candle", "dragon", "engine", "falcon",
    "garden", "hammer", "island", "mirror", "rabbit", "window",
)  # fmt: skip
WORDS = (
    "amber", "birch", "coral", "ember", "glade", "hazel",
    "jade", "maple", "ocean", "pearl", "silver", "tulip",
)  # fmt: skip


@dataclass(frozen=True)
class Folder:
    """The names of one task: two files, the word it is about, and the lines of the first file."""

    file: str
    other: str
    word: str
    lines: tuple[str, str, str]

    @property
    def first(self) -> str:
        """A line by which `file`'s content is recognised."""
        return self.lines[0]


@dataclass(frozen=True)
class Kind:
    """A fault: its one right repair, its symptom, and the condition that holds once repaired.

    The condition must be false for the repairs of all other kinds, too.
    """

    name: str
    repair: Callable[[Folder], str]
    symptom: Callable[[Folder], str]
    condition: Callable[[Folder], str]


KINDS = (
    Kind(
        "chmod",
        lambda f: f"chmod +x {f.file}",
        lambda f: f"{f.file} is not executable",
        lambda f: f"[ -x {f.file} ]",
    ),
    Kind(
        "touch",
        lambda f: f"touch {f.other}",
        lambda f: f"{f.other} is missing",
        lambda f: f"[ -f {f.other} ] && [ ! -s {f.other} ]",
    ),
    Kind(
        "echo",
        lambda f: f"echo {f.word} >> {f.file}",
        lambda f: f"{f.file} lacks {f.word}",
        lambda f: f'[ "$(tail -n 1 {f.file})" = {f.word} ]',
    ),
    Kind(
        "rm",
        lambda f: f"rm {f.other}",
        lambda f: f"{f.other} is stale",
        lambda f: f"[ ! -e {f.other} ] && grep -qx {f.first} {f.file}",
    ),
    Kind(
        "mv",
        lambda f: f"mv {f.other} {f.file}",
        lambda f: f"{f.other} is misnamed",
        lambda f: f"[ ! -e {f.other} ] && grep -qx {f.first} {f.file}",
    ),
    Kind(
        "sort",
        lambda f: f"sort -o {f.file} {f.file}",
        lambda f: f"{f.file} is not sorted",
        lambda f: f"[ -s {f.file} ] && sort -c {f.file}",
    ),
    Kind(
        "cp",
        lambda f: f"cp {f.file} {f.other}",
        lambda f: f"{f.other} is not a copy",
        lambda f: f"[ ! -L {f.other} ] && cmp -s {f.file} {f.other}",
    ),
    Kind(
        "ln",
        lambda f: f"ln -s {f.file} {f.other}",
        lambda f: f"{f.other} is not a link",
        lambda f: f'[ "$(readlink {f.other})" = {f.file} ]',
    ),
)


def tasks(split: Split, *, seed: int = 0) -> list[Task]:
    """The tasks of one split, the same for the same seed.

    Any prefix whose length is a multiple of len(KINDS) holds each kind equally often. No folder
    of one split occurs in the other.
    """
    folders = _folders(seed)
    cut = FOLDERS["train"]
    chosen = folders[:cut] if split == "train" else folders[cut:]
    return [
        _task(KINDS[(number + shift) % len(KINDS)], folder)
        for shift in range(len(KINDS))
        for number, folder in enumerate(chosen)
    ]


def repertoire(task: Task) -> list[str]:
    """The repairs of all kinds with this task's names; exactly one of them solves it.

    The order is that of KINDS, whatever the task. Raises ValueError for a task of another source.
    """
    folder = _folder_of(task)
    return [kind.repair(folder) for kind in KINDS]


def kind_of(task: Task) -> str:
    """The name of the task's fault, e.g. 'chmod'."""
    return task.id.removeprefix(f"{SOURCE}:").split("-")[0]


def symptom(task: Task) -> str:
    """What the task's check says while the fault is there, e.g. 'plan.txt is not sorted'."""
    (kind,) = (kind for kind in KINDS if kind.name == kind_of(task))
    return kind.symptom(_folder_of(task))


def renaming(task: Task, other: Task) -> Callable[[str], str]:
    """A function that puts `other`'s names for `task`'s into a text about `task`."""
    old, new = _folder_of(task), _folder_of(other)
    names = {old.file: new.file, old.other: new.other, old.word: new.word}
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    return lambda text: pattern.sub(lambda match: names[match[1]], text)


def _folders(seed: int) -> list[Folder]:
    """Distinct folders of both splits, train first."""
    rng = random.Random(f"skiff-shell-{seed}")
    names: dict[tuple[str, str, str], Folder] = {}
    while len(names) < sum(FOLDERS.values()):
        file, other = rng.choice(FILES), rng.choice(OTHERS)
        word, *rest = rng.sample(WORDS, 4)
        low, middle, high = sorted(rest)
        # Never sorted, whatever line is added or taken away at the end.
        folder = Folder(f"{file}.txt", f"{other}.txt", word, (high, low, middle))
        names.setdefault((file, other, word), folder)
    return list(names.values())


def _task(kind: Kind, folder: Folder) -> Task:
    check = (
        f"if {kind.condition(folder)} 2>/dev/null; then echo ok; "
        f"else echo 'FAIL: {kind.symptom(folder)}'; exit 1; fi\n"
    )
    stems = "-".join(name.removesuffix(".txt") for name in (folder.file, folder.other))
    return Task(
        id=f"{SOURCE}:{kind.name}-{stems}-{folder.word}",
        source=SOURCE,
        image=IMAGE,
        prompt=(
            f"Repair the folder. file: {folder.file} other: {folder.other} "
            f"word: {folder.word}. Run: {CHECK}"
        ),
        workdir=WORKDIR,
        files=(File(path=f"{WORKDIR}/check.sh", content=check), *_files(kind, folder)),
        # The same words as check.sh, but not the agent's copy of it.
        grade=ScriptGrade(script=check),
        solution=(CHECK, kind.repair(folder)),
    )


def _files(kind: Kind, folder: Folder) -> tuple[File, ...]:
    text = "".join(f"{line}\n" for line in folder.lines)
    file = File(path=f"{WORKDIR}/{folder.file}", content=text)
    other = f"{WORKDIR}/{folder.other}"
    if kind.name == "mv":
        return (File(path=other, content=text),)
    if kind.name == "rm":
        return (file, File(path=other, content=f"{folder.word}\n"))
    return (file,)


def _folder_of(task: Task) -> Folder:
    _kind, file, other, word = task.id.removeprefix(f"{SOURCE}:").split("-")
    # The lines are no part of any repair.
    return Folder(f"{file}.txt", f"{other}.txt", word, ("", "", ""))
