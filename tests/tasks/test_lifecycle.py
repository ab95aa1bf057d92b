"""Set-up, patch and grade in real sandboxes."""

from __future__ import annotations

from typing import Any

import pytest
from skiff.config import Config
from skiff.errors import InfraError
from skiff.sandbox.client import RuntimeClient, Sandbox, SandboxSpec
from skiff.tasks import r2e, shell
from skiff.tasks.lifecycle import GradeResult, cut, extract_patch, grade, prepare
from skiff.tasks.task import ExactGrade, File, PassGrade, ScriptGrade, Task

SECONDS = 60.0
SPLIT = {task.id.split("-")[0]: task for task in shell.tasks("validation")}
SECRET = "the fix is 42"

# An image's repository: the fix is in a branch, a tag, a stash, a remote, a reflog and a loose
# object; HEAD is before it. `left.bin` is untracked, `kept.log` is tracked although ignored.
REPOSITORY = f"""
set -e
git init -q /upstream; cd /upstream
git config user.name a; git config user.email a@b
echo '*.log' > .gitignore; echo old > code.py; echo log > kept.log; git add -f .; git commit -qm 1
echo '{SECRET}' > code.py; git commit -qam 2; git tag v2
git clone -q /upstream /testbed; cd /testbed
git config user.name a; git config user.email a@b
git branch fixed; echo '{SECRET} stashed' > code.py; git stash -q
echo '{SECRET} loose' | git hash-object -w --stdin > /dev/null
git reset -q --hard HEAD~1; git checkout -q --detach
git repack -qad
echo noise > left.bin
rm -rf /upstream
"""


def make_task(**fields: Any) -> Task:
    defaults = {
        "id": "test:one",
        "source": "test",
        "image": shell.IMAGE,
        "prompt": "",
        "grade": ScriptGrade(script="true"),
    }
    return Task(**(defaults | fields))


@pytest.fixture
def spec(sandbox_config: Config) -> SandboxSpec:
    return SandboxSpec.from_config(sandbox_config, image=shell.IMAGE)


async def sh(sandbox: Sandbox, command: str, cwd: str = "/testbed") -> str:
    done = await sandbox.run(command, timeout=SECONDS, cwd=cwd)
    assert done.exit_code == 0, done.text
    return done.text


async def graded(
    client: RuntimeClient, spec: SandboxSpec, task: Task, patch: bytes = b""
) -> GradeResult:
    return await grade(client, spec, task, patch, timeout=SECONDS)


# What the agent starts with


async def test_history_is_gone(runtime_client: RuntimeClient, spec: SandboxSpec) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await sh(sandbox, REPOSITORY, cwd="/")
        known = await sh(sandbox, "git rev-parse v2 v2:code.py")
        await prepare(sandbox, make_task(), timeout=SECONDS)
        assert (await sh(sandbox, "git log --all --reflog --oneline | wc -l")).strip() == "1"
        assert await sh(sandbox, "git remote; git stash list; git tag; git fsck --lost-found") == ""
        assert (await sh(sandbox, "git branch -a")).split() == ["*", "main"]
        assert await sh(sandbox, "cat code.py kept.log") == "old\nlog\n"
        assert await sh(sandbox, "git status --porcelain") == ""
        for name in known.split():
            assert (await sandbox.run(f"git cat-file -e {name}", timeout=9)).exit_code != 0
        everything = "git cat-file --batch-all-objects --batch"
        for folder in ("/testbed/.git", "/var/tmp/skiff-base.git"):
            assert SECRET not in await sh(sandbox, f"GIT_DIR={folder} {everything}")
        assert "noise" not in await sh(sandbox, everything)


async def test_a_folder_without_repository_becomes_one(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    files = (File(path="/testbed/deep/er/run.sh", content="it's\n$HOME `x`", mode=0o755),)
    task = make_task(files=files, setup="echo made > made.txt\nfalse\ntrue")
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        assert await sandbox.read("/testbed/deep/er/run.sh") == b"it's\n$HOME `x`"
        assert (await sh(sandbox, "git ls-files -s")).splitlines()[0].startswith("100755")
        assert (await sh(sandbox, "git ls-files")).split() == ["deep/er/run.sh", "made.txt"]
        await sh(sandbox, "git commit -q --allow-empty -m 'identity is set'")


async def test_hidden_paths_are_gone(runtime_client: RuntimeClient, spec: SandboxSpec) -> None:
    task = make_task(
        setup="mkdir /secret 'a b'; echo x > 'a b/x'", hidden=("/secret", "/testbed/a b")
    )
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(sandbox, "[ ! -e /secret ] && [ ! -e 'a b' ]")
        assert await sh(sandbox, "git ls-files") == ""


async def test_a_failing_setup_is_our_failure(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    task = make_task(setup="echo no such thing; exit 65")  # the status of a bad patch
    async with runtime_client.sandbox(spec) as sandbox:
        with pytest.raises(
            InfraError, match=r"test:one: set-up failed, .*: no such thing\n.* ended with 65"
        ):
            await prepare(sandbox, task, timeout=SECONDS)
    with pytest.raises(InfraError, match="set-up failed"):
        await graded(runtime_client, spec, task)


async def test_an_endless_setup_is_our_failure(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        with pytest.raises(InfraError, match=r"set-up failed, outlived 0\.5 s"):
            await prepare(sandbox, make_task(setup="sleep 60"), timeout=0.5)


# The agent's patch


@pytest.mark.parametrize(
    "work",
    [
        "echo new > code.py",
        "echo new > code.py; git add -A; git commit -qm mine; git reset -q --hard",
        "echo new > code.py; git commit -qam mine; git branch -m other; git gc -q --prune=now",
        "echo new > code.py; rm -rf .git",
        "echo new > code.py; rm -rf .git; git init -q .; git add .; git commit -qm start",
        "echo new > code.py; echo '* -diff -text filter=x' > .git/info/attributes",
        "echo new > code.py; chmod -x .git; touch .git/index.lock",
    ],
    ids=["plain", "commits", "gc", "no .git", "new .git", "attributes", "lock"],
)
async def test_what_git_is_told_does_not_matter(
    runtime_client: RuntimeClient, spec: SandboxSpec, work: str
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await sh(sandbox, REPOSITORY, cwd="/")
        await prepare(sandbox, make_task(), timeout=SECONDS)
        await sh(sandbox, f"set -e\n{work}")
        patch = await extract_patch(sandbox, make_task(), timeout=SECONDS)
    assert b"-old\n+new\n" in patch
    assert patch.count(b"diff --git") == 1


async def test_a_patch_carries_everything_to_the_grade(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    setup = "printf 'a\\000b' > data; echo x > run; echo y > gone; echo z > moved"
    check = (
        "set -e; [ $(od -An -tx1 < data | tr -d ' ') = ff00fe ]; [ -x run ]; [ ! -e gone ]; "
        "[ -L link ]; [ $(cat 'new dir/latin') = $(printf '\\351') ]; [ -e empty ]; "
        "[ ! -e moved ]; [ $(cat to) = z ]"
    )
    task = make_task(setup=setup, grade=ScriptGrade(script=check))
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(
            sandbox,
            "printf '\\377\\000\\376' > data; chmod +x run; rm gone; ln -s run link; "
            "mkdir 'new dir'; printf '\\351\\n' > 'new dir/latin'; touch empty; mv moved to; "
            "mkdir __pycache__; touch __pycache__/run.cpython-311.pyc",
        )
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert b"pycache" not in patch
    assert (await graded(runtime_client, spec, task)).reward == 0.0
    result = await graded(runtime_client, spec, task, patch)
    assert result.reward == 1.0, result


async def test_files_left_by_the_image_are_no_part_of_the_patch(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await sh(sandbox, f"{REPOSITORY}\necho '[weird] *?' > '/testbed/[odd]*.bin'", cwd="/")
        await prepare(sandbox, make_task(), timeout=SECONDS)
        await sh(sandbox, "echo more >> left.bin; echo more >> '[odd]*.bin'; echo o > odd.bin")
        patch = await extract_patch(sandbox, make_task(), timeout=SECONDS)
    assert patch.count(b"diff --git") == 1
    assert b"b/odd.bin" in patch


async def test_a_repository_in_the_work_folder_is_just_files(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, make_task(), timeout=SECONDS)
        await sh(sandbox, "git init -q empty; git init -q sub; cd sub; echo s > s.txt")
        await sh(sandbox, "cd sub; git add .; git commit -qm sub; echo x > ../empty/x.txt")
        patch = await extract_patch(sandbox, make_task(), timeout=SECONDS)
    assert b"b/sub/s.txt" in patch
    assert b"b/empty/x.txt" in patch
    assert b"Subproject" not in patch


async def test_a_large_patch_is_whole(runtime_client: RuntimeClient, spec: SandboxSpec) -> None:
    task = make_task(grade=ScriptGrade(script="[ $(wc -c < big) = 3000000 ]"))
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(sandbox, "head -c 3000000 /dev/urandom > big")
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert len(patch) > 3_000_000
    assert (await graded(runtime_client, spec, task, patch)).reward == 1.0


@pytest.mark.parametrize(
    "havoc",
    ["true", "rm -rf /testbed", "rm -rf /var/tmp/*", "rm -f /usr/bin/git"],
    ids=["nothing", "no folder", "no base", "no git"],
)
async def test_no_patch_is_an_empty_one(
    runtime_client: RuntimeClient, spec: SandboxSpec, havoc: str
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, make_task(), timeout=SECONDS)
        await sandbox.run(havoc, timeout=SECONDS)
        assert await extract_patch(sandbox, make_task(), timeout=SECONDS) == b""


# The grade


async def test_a_patch_that_does_not_apply_scores_nothing(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    patch = b"diff --git a/x b/x\n--- a/x\n+++ b/x\n@@ -1 +1 @@\n-no such line\n+y\n"
    result = await graded(runtime_client, spec, make_task(), patch)
    assert (result.reward, result.detail) == (0.0, "the patch does not apply")
    assert "x: No such file" in result.output


async def test_slow_tests_score_nothing(runtime_client: RuntimeClient, spec: SandboxSpec) -> None:
    task = make_task(grade=ScriptGrade(script="echo started; sleep 60"), grade_seconds=0.5)
    result = await graded(runtime_client, spec, task)
    assert result.reward == 0.0
    assert result.detail.startswith("timeout")


async def test_the_agents_tests_do_not_count(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    """Neither a rewritten test, nor a new file where a hidden one will be, changes the verdict."""
    task = make_task(
        setup="echo 'exit 1' > visible.sh; mkdir hidden; echo 'exit 1' > hidden/test.sh",
        hidden=("/testbed/hidden",),
        grade_files=(File(path="/testbed/late.sh", content="exit 1\n"),),
        grade=ScriptGrade(script="bash hidden/test.sh || bash late.sh || bash visible.sh"),
    )
    cheat = "mkdir -p hidden; echo 'exit 0' | tee hidden/test.sh hidden/more.sh > late.sh"
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(sandbox, cheat)
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
        assert b"hidden/test.sh" in patch
        await sh(sandbox, "echo 'exit 0' > visible.sh")
        open_patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert (await graded(runtime_client, spec, task, patch)).reward == 0.0
    assert (await graded(runtime_client, spec, task, open_patch)).reward == 1.0


PYTEST_LOG = "printf 'PASSED t.py::test_old\\n%s t.py::test_new\\n' $(cat t.py)"


async def test_the_test_patch_comes_with_the_grade(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    test_patch = "diff --git a/t.py b/t.py\n--- a/t.py\n+++ b/t.py\n@@ -1 +1 @@\n-FAILED\n+PASSED\n"
    task = make_task(
        setup="echo FAILED > t.py",
        grade=PassGrade(
            script=PYTEST_LOG,
            test_patch=test_patch,
            fail_to_pass=("t.py::test_new",),
            pass_to_pass=("t.py::test_old",),
        ),
    )
    edited = test_patch.replace("+PASSED", "+ERROR").encode()
    assert (await graded(runtime_client, spec, task, edited)).reward == 1.0
    bad = task.model_copy(update={"setup": "echo other > t.py"})
    with pytest.raises(InfraError, match="test_patch failed"):
        await graded(runtime_client, spec, bad)


async def test_a_summary_behind_much_output_is_read(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    script = (
        "head -c 3000000 /dev/zero | tr '\\0' x; echo; "
        "echo '== short test summary info =='; echo PASSED t.py::test_a; exit 1"
    )
    task = make_task(grade=ExactGrade(script=script, expected={"test_a": "PASSED"}))
    result = await graded(runtime_client, spec, task)
    assert result.reward == 1.0, result.detail
    assert len(result.output) < 21_000


async def test_a_missing_sandbox_is_no_reward_of_zero(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, make_task(), timeout=SECONDS)
        await sandbox.stop()
        with pytest.raises(InfraError):
            await extract_patch(sandbox, make_task(), timeout=SECONDS)


def test_cut_keeps_both_ends() -> None:
    assert cut("short") == "short"
    assert cut("a" * 50 + "b" * 50, 20) == (
        "aaaaaaaaaa\n[... 80 characters left out ...]\nbbbbbbbbbb"
    )


# R2E-Gym's images

R2E_IMAGE = """
mkdir -p .venv/bin {tests}
ln -s /usr/bin/python3 .venv/bin/python
printf '#!/bin/sh\\n' > .venv/bin/tool; chmod +x .venv/bin/tool
echo 'source /dev/null; cat {inside}/log' > run_tests.sh
printf 'x\\n== short test summary info ==\\nPASSED t.py::test_a\\n' > {tests}/log
"""


@pytest.mark.parametrize("tests", ["/r2e_tests", "/testbed/r2e_tests"])
async def test_r2e_set_up_and_grade(
    runtime_client: RuntimeClient, spec: SandboxSpec, tests: str
) -> None:
    made = R2E_IMAGE.format(tests=tests, inside="r2e_tests")
    task = make_task(
        setup=f"{made}\n{r2e.SETUP}",
        hidden=("/r2e_tests", "/testbed/r2e_tests", "/testbed/run_tests.sh"),
        grade=ExactGrade(script=r2e.GRADE, expected={"test_a": "PASSED"}),
    )
    async with runtime_client.sandbox(spec) as sandbox:
        await sh(sandbox, "mkdir /testbed; echo x > /testbed/old.pyc", cwd="/")
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(sandbox, "[ ! -e run_tests.sh ] && [ ! -e r2e_tests ] && [ ! -e /r2e_tests ]")
        await sh(sandbox, "[ -x /root/.venv/bin/python ] && [ -x /root/.local/bin/tool ]")
        await sh(sandbox, "[ ! -e old.pyc ]")
    assert (await graded(runtime_client, spec, task)).reward == 1.0


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ("rm -r /r2e_tests", "the image has neither /r2e_tests nor /testbed/r2e_tests"),
        ("rm run_tests.sh", "the image has no /testbed/run_tests.sh"),
    ],
)
async def test_an_r2e_image_without_its_tests_is_our_failure(
    runtime_client: RuntimeClient, spec: SandboxSpec, spoil: str, words: str
) -> None:
    made = R2E_IMAGE.format(tests="/r2e_tests", inside="r2e_tests")
    task = make_task(
        setup=f"{made}\n{spoil}\n{r2e.SETUP}",
        grade=ExactGrade(script=r2e.GRADE, expected={"test_a": "PASSED"}),
    )
    with pytest.raises(InfraError, match=words):
        await graded(runtime_client, spec, task)


async def test_missing_r2e_tests_are_no_fault_where_nothing_reads_them(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    made = R2E_IMAGE.format(tests="/testbed/elsewhere", inside="elsewhere")
    task = make_task(
        setup=f"{made}\n{r2e.SETUP}",
        grade=ExactGrade(script=r2e.GRADE, expected={"test_a": "PASSED"}),
    )
    assert (await graded(runtime_client, spec, task)).reward == 1.0


# The shell family


@pytest.mark.parametrize("kind", SPLIT)
async def test_exactly_one_repair_of_the_repertoire_solves_it(
    runtime_client: RuntimeClient, spec: SandboxSpec, kind: str
) -> None:
    task = SPLIT[kind]
    check, right = task.solution
    solving = []
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        for repair in shell.repertoire(task):
            copy = "rm -rf /copy; cp -a /folder /copy; cd /copy"
            done = await sandbox.run(f"{copy}; {repair}; {check}", timeout=SECONDS)
            if done.exit_code == 0:
                solving.append(repair)
        await sh(sandbox, right, cwd=task.workdir)
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert solving == [right]
    assert (await graded(runtime_client, spec, task, patch)).reward == 1.0
    assert (await graded(runtime_client, spec, task)).reward == 0.0


async def test_editing_the_check_does_not_help(
    runtime_client: RuntimeClient, spec: SandboxSpec
) -> None:
    task = SPLIT["shell:cp"]
    async with runtime_client.sandbox(spec) as sandbox:
        await prepare(sandbox, task, timeout=SECONDS)
        await sh(sandbox, "echo 'echo ok' > check.sh; sh check.sh", cwd=task.workdir)
        patch = await extract_patch(sandbox, task, timeout=SECONDS)
    assert patch
    assert (await graded(runtime_client, spec, task, patch)).reward == 0.0
