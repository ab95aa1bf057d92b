"""One task in sandboxes: set it up, take the agent's patch, grade the patch in a fresh sandbox.

Each step is one shell script sent as one command, so a step costs one or two round trips. The base
that a patch is measured against is a git folder of our own outside the work folder: what the agent
does to its `.git` (commits, resets, deletes it) changes nothing.

Not covered: submodules (their content is no part of a patch); an agent that attacks the base folder
only empties its own patch; a patch that plants pytest plug-ins or a new conftest.py is applied like
any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from shlex import quote
from uuid import uuid4

from skiff.errors import InfraError
from skiff.sandbox.client import CommandResult, RuntimeClient, Sandbox, SandboxSpec
from skiff.tasks.diffs import touched_paths
from skiff.tasks.task import File, PassGrade, Task
from skiff.tasks.verdict import judge

MAX_PATCH_BYTES = 16 << 20
OUTPUT_CHARS = 20_000
_BASE = "/var/tmp/skiff-base.git"
_PATCH = "/var/tmp/skiff.patch"
_TEST_PATCH = "/var/tmp/skiff-test.patch"
_LOG = "/var/tmp/skiff-grade.log"
_SETUP_FAILED = 64
_NOT_APPLIED = 65
_TEST_PATCH_NOT_APPLIED = 66
_IDENTITY = "[user]\n\tname = agent\n\temail = agent@localhost\n[safe]\n\tdirectory = *\n"
_NEVER_IN_A_PATCH = ("__pycache__/", "*.pyc", ".pytest_cache/")


@dataclass(frozen=True)
class GradeResult:
    """reward 1.0 or 0.0; the tests' output, cut in the middle; one sentence on why."""

    reward: float
    output: str
    detail: str


async def prepare(sandbox: Sandbox, task: Task, *, timeout: float) -> None:
    """Bring a fresh sandbox to where the agent starts. `timeout` in seconds.

    Files in place, set-up run, hidden paths gone, and the work folder a repository of exactly one
    commit: no ref, reflog, remote, stash or object tells of another. Files that the image left
    untracked stay so and are no part of the patch. Raises InfraError when any of it fails.
    """
    script = "\n".join(
        (
            *_enter(task),
            "identity() { printf %s " + quote(_IDENTITY) + "; }",
            "{ identity >> /etc/gitconfig; } 2>/dev/null || identity >> ~/.gitconfig",
            _IGNORE_UNTRACKED,
            *_place(task.files),
            *_setup(task),
            *(f"rm -rf {quote(path)}" for path in task.hidden),
            _ONE_COMMIT,
        )
    )
    done = await sandbox.run(script, timeout=timeout, cwd="/")
    if done.exit_code != 0:
        raise _failed("set-up", task, done, timeout)


async def extract_patch(sandbox: Sandbox, task: Task, *, timeout: float) -> bytes:
    """What the agent changed below the work folder, as `git apply` takes it (binary files, modes).

    Commits of the agent make no difference, nor does a deleted .git. The patch is empty when there
    is none to be had: nothing changed, the agent removed the work folder or git itself, or the
    patch is larger than MAX_PATCH_BYTES. Raises InfraError when git outlives `timeout` seconds.
    """
    script = "\n".join(
        (
            f"cd {quote(task.workdir)} || exit",
            f"export GIT_DIR={_BASE} GIT_WORK_TREE={quote(task.workdir)}",
            "export GIT_CONFIG_NOSYSTEM=1 GIT_CONFIG_GLOBAL=/dev/null",
            f"rm -f {_BASE}/index.lock",
            _NO_NESTED_REPOSITORIES,
            "git add -A || exit",
            "git diff --cached --binary --no-color --no-renames --no-ext-diff --no-textconv "
            f"--src-prefix=a/ --dst-prefix=b/ refs/heads/main > {_PATCH} || exit",
            f'[ "$(wc -c < {_PATCH})" -gt {MAX_PATCH_BYTES} ] || cat {_PATCH}',
        )
    )
    done = await sandbox.run(script, timeout=timeout, cwd="/")
    if done.exit_code is None:
        raise _failed("patch extraction", task, done, timeout)
    if done.exit_code != 0:
        return b""
    with _own_files(task):
        return await sandbox.read(_PATCH) if done.truncated else done.stdout


async def grade(
    client: RuntimeClient, spec: SandboxSpec, task: Task, patch: bytes, *, timeout: float
) -> GradeResult:
    """Apply `patch` in a fresh sandbox like `spec` and run the task's tests there.

    Paths of the tests (hidden, grade_files, test_patch) are left out of the patch. Reward 0.0 with
    a detail when the patch does not apply or the tests outlive `timeout` seconds
    (task.grade_seconds goes first): both are the agent's doing. Raises InfraError for a failure of
    the sandbox, the set-up or the task's own test_patch.
    """
    async with client.sandbox(fresh(spec)) as sandbox:
        refusal = await _apply(sandbox, task, patch, timeout)
        if refusal is not None:
            return GradeResult(0.0, cut(refusal), "the patch does not apply")
        return await _run_tests(sandbox, task, task.grade_seconds or timeout)


def fresh(spec: SandboxSpec) -> SandboxSpec:
    """The same, but for another sandbox."""
    return replace(spec, session_id=uuid4().hex)


async def _apply(sandbox: Sandbox, task: Task, patch: bytes, timeout: float) -> str | None:
    """Set up as the agent found it, but with tests and history; git's words on a bad patch."""
    test_patch = task.grade.test_patch.encode() if isinstance(task.grade, PassGrade) else b""
    steps = [*_enter(task), *_place(task.files), *_setup(task)]
    with _own_files(task):
        for path, content in ((_PATCH, patch), (_TEST_PATCH, test_patch)):
            if content.strip():
                await sandbox.write(path, content)
    if patch.strip():
        steps.append(f"{_git_apply(_PATCH, _protected(task, test_patch))} || exit {_NOT_APPLIED}")
    if test_patch.strip():
        steps.append(f"{_git_apply(_TEST_PATCH, ())} || exit {_TEST_PATCH_NOT_APPLIED}")
    steps += _place(task.grade_files)
    done = await sandbox.run("\n".join(steps), timeout=timeout, cwd="/")
    if done.exit_code == _TEST_PATCH_NOT_APPLIED:
        raise _failed("test_patch", task, done, timeout)
    if done.exit_code not in (0, _NOT_APPLIED):
        raise _failed("set-up", task, done, timeout)
    return None if done.exit_code == 0 else done.text


async def _run_tests(sandbox: Sandbox, task: Task, timeout: float) -> GradeResult:
    # By way of a file: the output limit of a command must not eat the summary at its end.
    command = (
        f"(\n{task.grade.script}\n) > {_LOG} 2>&1 < /dev/null\ncode=$?\ncat {_LOG}\nexit $code"
    )
    done = await sandbox.run(command, timeout=timeout, cwd=task.workdir)
    if done.exit_code is None:
        return GradeResult(0.0, cut(done.text), f"timeout: the tests outlived {timeout:g} s")
    with _own_files(task):
        raw = await sandbox.read(_LOG) if done.truncated else done.stdout
    output = raw.decode(errors="replace")
    verdict = judge(task.grade, done.exit_code, output)
    return GradeResult(verdict.reward, cut(output), verdict.detail)


def cut(text: str, limit: int = OUTPUT_CHARS) -> str:
    """`text` with its middle left out when it has more than `limit` characters."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"


def _enter(task: Task) -> list[str]:
    work = quote(task.workdir)
    return ["set -eu", "umask 022", f"mkdir -p {work}", f"cd {work}"]


def _place(files: Sequence[File]) -> list[str]:
    """Shell lines that write `files`; shell builtins where possible, since forks cost."""
    folders = sorted({file.path.rsplit("/", 1)[0] or "/" for file in files})
    modes: dict[int, list[str]] = {}
    for file in files:
        modes.setdefault(file.mode, []).append(quote(file.path))
    return [
        *([f"mkdir -p {' '.join(map(quote, folders))}"] if folders else []),
        *(f"printf %s {quote(file.content)} > {quote(file.path)}" for file in files),
        *(f"chmod {mode:o} {' '.join(paths)}" for mode, paths in modes.items()),
    ]


def _setup(task: Task) -> list[str]:
    # The task's script is not bound by our own `set -eu`, and its status is not one of ours.
    failed = f'{{ echo "the set-up script ended with $?"; exit {_SETUP_FAILED}; }}'
    return [f"(\nset +eu\n{task.setup}\n) || {failed}"] if task.setup else []


def _git_apply(path: str, excluded: Iterable[str]) -> str:
    excludes = " ".join(f"--exclude={quote(pattern)}" for pattern in excluded)
    return f"git apply --whitespace=nowarn {excludes} {path}"


def _protected(task: Task, test_patch: bytes) -> list[str]:
    """Patterns of `git apply --exclude` for everything that the tests consist of."""
    root = task.workdir.rstrip("/") + "/"
    absolute = (*task.hidden, *(file.path for file in task.grade_files))
    inside = [path.removeprefix(root) for path in absolute if path.startswith(root)]
    literal = [re.sub(r"([*?\[\\])", r"\\\1", path) for path in inside + touched_paths(test_patch)]
    return [pattern for path in dict.fromkeys(literal) for pattern in (path, f"{path}/*")]


@contextmanager
def _own_files(task: Task) -> Iterator[None]:
    """Our files in the sandbox that can't be written or read are not the agent's failure."""
    try:
        yield
    except OSError as error:
        raise InfraError(str(error), where=f"sandbox of {task.id}") from error


def _failed(step: str, task: Task, done: CommandResult, timeout: float) -> InfraError:
    ended = f"outlived {timeout:g} s" if done.exit_code is None else f"exit {done.exit_code}"
    return InfraError(
        f"{step} failed, {ended}: {cut(done.text.strip(), 2000)}",
        where=task.id,
        remedy="if it fails every time, `skiff tasks validate` puts the task on the skip list",
    )


# What the image left untracked before the task's own files came: no part of the patch.
_IGNORE_UNTRACKED = r"""
ignored=/var/tmp/skiff-ignored
printf '%s\n' {patterns} > $ignored
if [ -e .git ]; then
  cat "$(git rev-parse --git-path info/exclude)" >> $ignored 2>/dev/null || true
  git -c core.quotePath=false ls-files --others --exclude-standard --directory |
    sed 's/[][*?\\]/\\&/g; s|^|/|' >> $ignored
fi
""".strip().format(patterns=" ".join(map(quote, _NEVER_IN_A_PATCH)))

# Git would take a repository in the work folder for a submodule and leave its files out.
_NO_NESTED_REPOSITORIES = "find . -mindepth 2 -name .git -prune -exec rm -rf {} +"

# The objects of one parentless commit are packed into a new repository, which replaces the old one
# whole: what isn't copied can't be found. The index comes along, so nothing is read twice.
_ONE_COMMIT = rf"""
new=/var/tmp/skiff-new.git
rm -rf $new {_BASE}
git init -q --template= --bare $new
git --git-dir=$new symbolic-ref HEAD refs/heads/main
git --git-dir=$new config core.bare false
mkdir -p $new/info
mv $ignored $new/info/exclude
if [ -e .git ]; then
  old=$(git rev-parse --git-common-dir)
  index=$(git rev-parse --git-path index)
  rm -f "$index.lock"
  mkdir -p "$old/info"
  cp $new/info/exclude "$old/info/exclude"
  git add -A
  git ls-files --stage | sed -n 's/^160000 [^	]*	//p' |
    while IFS= read -r module; do rm -rf "$module/.git"; done
  base=$(git commit-tree -m base "$(git write-tree)")
  echo $base | git pack-objects --quiet --window=0 --revs --stdout |
    git --git-dir=$new index-pack --stdin > /dev/null
  mv "$index" $new/index
  rm -rf "$old" .git
else
  {_NO_NESTED_REPOSITORIES}
  export GIT_DIR=$new GIT_WORK_TREE=.
  git add -A
  base=$(git commit-tree -m base "$(git write-tree)")
  unset GIT_DIR GIT_WORK_TREE
fi
git --git-dir=$new update-ref refs/heads/main $base
cp -a $new {_BASE}
mv $new .git
""".strip()
