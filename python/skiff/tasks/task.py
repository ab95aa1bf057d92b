"""`Task`: everything that defines one problem, as plain data that survives JSON and parquet.

A task says how the sandbox is set up, what the agent is told and how its patch is graded. It holds
no code: the three `grade.kind`s below are the only verdicts there are.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class File(Frozen):
    """A text file put into the sandbox."""

    path: Annotated[str, Field(pattern=r"^/")]
    content: str
    mode: int = 0o644


class ScriptGrade(Frozen):
    """Run `script` with bash (sh where there is none): reward 1.0 when it exits 0."""

    kind: Literal["script"] = "script"
    script: str


class ExactGrade(Frozen):
    """R2E-Gym: run `script`, parse pytest's short summary, reward 1.0 when the dictionary
    test name -> status equals `expected` exactly."""

    kind: Literal["exact"] = "exact"
    script: str
    expected: dict[str, str]


class PassGrade(Frozen):
    """SWE-bench: apply `test_patch`, run `script`, reward 1.0 when every FAIL_TO_PASS and every
    PASS_TO_PASS test passes."""

    kind: Literal["pass"] = "pass"
    script: str
    test_patch: str = ""
    fail_to_pass: tuple[str, ...]
    pass_to_pass: tuple[str, ...] = ()


Grade = Annotated[ScriptGrade | ExactGrade | PassGrade, Field(discriminator="kind")]


class Task(Frozen):
    """One problem.

    id          unique over all sources: '<source>:<name>'
    image       container image of the sandbox
    prompt      what the agent is told (the issue text)
    workdir     the repository in the image; the patch is what changed below it
    files       put in place before the agent starts
    setup       shell script run before the agent starts; a non-zero exit is an InfraError
    grade       the verdict, applied in a fresh sandbox
    grade_files put in place only in the grading sandbox (tests the agent must not see)
    hidden      paths removed before the agent starts (tests baked into the image)
    gold_patch  unified diff (git apply) that solves the task, for `skiff tasks validate`
    solution    the scripted solver's shell commands, when there is one
    """

    id: str
    source: str
    image: str
    prompt: str
    workdir: str = "/testbed"
    files: tuple[File, ...] = ()
    setup: str = ""
    grade: Grade
    grade_files: tuple[File, ...] = ()
    hidden: tuple[str, ...] = ()
    gold_patch: str = ""
    solution: tuple[str, ...] = ()
    env: dict[str, str] = {}
    command_seconds: float | None = None
    grade_seconds: float | None = None
