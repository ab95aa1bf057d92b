"""`synthetic:<package>`: a real package with one bug put in, graded by its own test suite.

A mutant becomes a task when it turns some of the passing tests into failing ones, but not all, in a
real sandbox. The tests stay visible; grading puts the image's own copy of them back.
Not covered: packages whose tests need the network; doctests; test ids that hold blanks.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import re
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from shlex import quote

from rich.progress import Progress

from skiff.config.schema import Config
from skiff.errors import TaskError
from skiff.sandbox.client import RuntimeClient, SandboxSpec
from skiff.tasks.diffs import file_diff
from skiff.tasks.lifecycle import fresh
from skiff.tasks.mutate import Mutant, mutants
from skiff.tasks.package import Package
from skiff.tasks.task import PassGrade, Task
from skiff.tasks.verdict import parse_log

SOURCE = "synthetic"
WORKDIR = "/testbed"
PRISTINE = "/opt/tests"  # the images' second copy of the tests
FAIL_TO_PASS, PASS_TO_PASS = 10, 20  # most tests of each kind that a task names
_SHOWN = 5  # failing tests that the prompt shows
BATCH = 4  # mutants tried together
_BASELINE_SECONDS = 600.0
_LOG = "/var/tmp/skiff-tests.log"
_REASON = re.compile(r"^FAILED (\S+) - (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Mutation:
    """One changed file: `path` below the sources, its text before and after."""

    path: str
    original: str
    mutated: str

    @property
    def patch(self) -> str:
        """Puts the bug in."""
        return file_diff(self.path, self.original, self.mutated)

    @property
    def gold_patch(self) -> str:
        """Takes the bug out."""
        return file_diff(self.path, self.mutated, self.original)


@dataclass(frozen=True)
class Bug:
    """A mutation that the tests notice. `failing` maps test ids to the end of their message."""

    mutation: Mutation
    test_files: tuple[str, ...]
    failing: Mapping[str, str]
    passing: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What a test run left: status and message by test id, and how many seconds it took."""

    statuses: dict[str, str]
    reasons: dict[str, str]
    seconds: float

    @property
    def passed(self) -> set[str]:
        return {name for name, status in self.statuses.items() if status == "PASSED"}


async def find_bugs(
    client: RuntimeClient,
    config: Config,
    package: Package,
    image: str,
    *,
    count: int,
    seed: int,
    progress: Progress,
) -> list[Bug]:
    """The first `count` mutants, in an order that depends on `seed` only, that the tests notice.

    May be fewer when the package has no more. Raises TaskError when its tests do not pass as they
    are, InfraError when sandboxes fail.
    """
    spec = SandboxSpec.from_config(config, image=image, workdir=WORKDIR)
    baseline = await _run_tests(client, spec, None, package.tests, _BASELINE_SECONDS)
    if baseline is None or not baseline.passed:
        raise TaskError(
            "none of its tests passes in the sandbox",
            where=f"{package.name} {package.version}",
            remedy="name missing test requirements with --with, or take another package",
        )
    bar = progress.add_task(f"{package.name} {package.version}", total=count)
    limit = baseline.seconds * 3 + 10
    bugs: list[Bug] = []
    # In batches, not first come first served: the choice must not depend on timing.
    mutations = _mutations(package, random.Random(f"{SOURCE}-{seed}"))
    for batch in itertools.batched(mutations, BATCH):
        found = await asyncio.gather(
            *(_try(client, spec, package, baseline, mutation, limit) for mutation in batch)
        )
        bugs += [bug for bug in found if bug is not None]
        progress.update(bar, completed=min(len(bugs), count))
        if len(bugs) >= count:
            break
    return bugs[:count]


def to_task(bug: Bug, package: Package, image: str, *, number: int, seed: int) -> Task:
    """The task of a bug. `number` makes its id; `seed` chooses the tests it names."""
    rng = random.Random(f"{SOURCE}-{seed}-{number}")
    failing = sorted(rng.sample(sorted(bug.failing), min(FAIL_TO_PASS, len(bug.failing))))
    passing = sorted(rng.sample(sorted(bug.passing), min(PASS_TO_PASS, len(bug.passing))))
    restore = " ".join(quote(name) for name in package.test_roots)
    return Task(
        id=f"{SOURCE}:{package.name}-{package.version}-{number:04d}",
        source=SOURCE,
        image=image,
        prompt=_prompt(bug, package),
        workdir=WORKDIR,
        setup=_git_apply(bug.mutation.patch, "SKIFF_BUG"),
        grade=PassGrade(
            script=f"rm -rf {restore}\ncp -a {PRISTINE}/. .\n{_test_command(bug.test_files)}",
            fail_to_pass=tuple(failing),
            pass_to_pass=tuple(passing),
        ),
        gold_patch=bug.mutation.gold_patch,
        solution=(_git_apply(bug.mutation.gold_patch, "SKIFF_FIX"),),
    )


def _git_apply(patch: str, end: str) -> str:
    return f"git apply --whitespace=nowarn <<'{end}'\n{patch}{end}"


def _prompt(bug: Bug, package: Package) -> str:
    """Names what goes wrong, not where."""
    shown = list(bug.failing.items())[:_SHOWN]
    lines = [f"- {name}: {reason}" if reason else f"- {name}" for name, reason in shown]
    more = len(bug.failing) - len(shown)
    if more:
        lines.append(f"- and {more} more")
    command = f"python -m pytest {' '.join(bug.test_files[:3])}"
    return (
        f"Some tests of {package.name} {package.version} fail. Find the cause in the package and "
        "repair it; leave the tests as they are.\n\n"
        + "\n".join(lines)
        + f"\n\nThe sources are in {WORKDIR}. Run tests with: {command}"
    )


def _mutations(package: Package, rng: random.Random) -> Iterator[Mutation]:
    """All mutations of the package, shuffled, each function once before any twice."""
    ranked: list[tuple[int, float, str, Mutant]] = []
    sources: dict[str, str] = {}
    for path in package.modules:
        with (package.root / path).open(encoding="utf-8", newline="") as file:
            sources[path] = file.read()
        found = mutants(sources[path])
        rng.shuffle(found)
        seen: Counter[str] = Counter()
        for mutant in found:
            ranked.append((seen[mutant.function], rng.random(), path, mutant))
            seen[mutant.function] += 1
    ranked.sort(key=lambda entry: entry[:2])
    for _, _, path, mutant in ranked:
        mutated = mutant.applied(sources[path])
        if mutated is not None:
            yield Mutation(path, sources[path], mutated)


async def _try(
    client: RuntimeClient,
    spec: SandboxSpec,
    package: Package,
    baseline: Outcome,
    mutation: Mutation,
    seconds: float,
) -> Bug | None:
    """Run the tests on a mutation. None: too slow, not noticed, or nothing works any more."""
    files = _touching(package, mutation.path)
    outcome = await _run_tests(client, spec, mutation, files, seconds)
    if outcome is None:
        return None
    ran = baseline.passed & set(outcome.statuses)
    failing = sorted(name for name in ran if outcome.statuses[name] == "FAILED")
    passing = tuple(sorted(ran & outcome.passed))
    if not failing or not passing:
        return None
    reasons = {name: outcome.reasons.get(name, "") for name in failing}
    return Bug(mutation, files, reasons, passing)


def _touching(package: Package, module: str) -> tuple[str, ...]:
    """The test files that mention the module by name; all when none does."""
    path = PurePosixPath(module)
    stem = path.parent.name if path.stem == "__init__" else path.stem
    word = re.compile(rf"\b{re.escape(stem)}\b")
    texts = {file: (package.root / file).read_text(errors="replace") for file in package.tests}
    return tuple(file for file, text in texts.items() if word.search(text)) or package.tests


async def _run_tests(
    client: RuntimeClient,
    spec: SandboxSpec,
    mutation: Mutation | None,
    files: Sequence[str],
    seconds: float,
) -> Outcome | None:
    """Run test files in a fresh sandbox, with the mutation in place; None when time ran out."""
    async with client.sandbox(fresh(spec)) as sandbox:
        if mutation is not None:
            await sandbox.write(f"{WORKDIR}/{mutation.path}", mutation.mutated.encode())
        began = time.monotonic()
        command = f"COLUMNS=200 {_test_command(files)} > {_LOG} 2>&1"
        done = await sandbox.run(command, timeout=seconds, cwd=WORKDIR)
        took = time.monotonic() - began
        if done.exit_code is None:
            return None
        output = (await sandbox.read(_LOG)).decode(errors="replace")
    statuses = {name: status for name, status in parse_log(output).items() if _is_whole(name)}
    return Outcome(statuses, dict(_REASON.findall(output)), took)


def _test_command(files: Sequence[str]) -> str:
    """`addopts` of the package may ask for plug-ins that only its developers have."""
    names = " ".join(map(quote, files))
    return f"python -m pytest -rA --tb=short -p no:cacheprovider -o addopts= {names}"


def _is_whole(name: str) -> bool:
    """Parameters with blanks are cut off in the log, and two such ids can be the same."""
    return name.count("[") == name.count("]")
