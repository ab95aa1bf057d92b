"""Commands in real containers, over HTTP, in each kind of image."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

SECONDS = 30.0
IMAGES = ["debian", "busybox", "plain"]


@pytest.mark.parametrize("image", IMAGES)
async def test_what_a_command_meets(image: str, images: Any, opened: Any) -> None:
    env = {"PLACE": "a 'quoted' $place"}
    async with opened(images[image], workdir="/tmp", env=env) as sandbox:
        done = await sandbox.run('pwd; echo "$PLACE"; echo bad >&2; exit 7', timeout=SECONDS)
        assert (done.exit_code, done.stderr) == (7, b"bad\n")
        assert done.stdout == b"/tmp\na 'quoted' $place\n"
        assert done.text == "/tmp\na 'quoted' $place\nbad\n"
        assert (done.timed_out, done.truncated) == (False, False)
        done = await sandbox.run("cat; cd /; x=1", timeout=SECONDS)  # stdin is empty
        assert (done.exit_code, done.text) == (0, "")
        done = await sandbox.run("echo [$x]; pwd", timeout=SECONDS, cwd="/etc")
        assert done.text == "[]\n/etc\n"


@pytest.mark.parametrize(("image", "bash"), [("debian", True), ("busybox", False)])
async def test_shell_is_bash_where_there_is_one(
    image: str, bash: bool, images: Any, opened: Any
) -> None:
    async with opened(images[image]) as sandbox:
        done = await sandbox.run('[ -n "$BASH_VERSION" ]', timeout=SECONDS)
        assert (done.exit_code == 0) is bash


async def test_image_environment_and_user(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        assert (await sandbox.run("echo $GREETING", timeout=SECONDS)).text == "hello\n"
    async with opened(images["plain"]) as sandbox:
        assert (await sandbox.run("id -u", timeout=SECONDS)).text == "1000\n"


async def test_output_is_bytes(images: Any, opened: Any) -> None:
    async with opened(images["debian"]) as sandbox:
        done = await sandbox.run(r"printf '\000\377\n'; printf '\376' >&2", timeout=SECONDS)
        assert (done.stdout, done.stderr) == (b"\0\xff\n", b"\xfe")


async def test_long_output_keeps_both_ends(images: Any, opened: Any) -> None:
    async with opened(images["busybox"], output_bytes=1000) as sandbox:
        command = "echo first; head -c 5000000 /dev/zero; echo last; echo short >&2"
        done = await sandbox.run(command, timeout=SECONDS)
        assert done.truncated
        assert done.stdout.startswith(b"first\n")
        assert done.stdout.endswith(b"last\n")
        assert b"bytes left out" in done.stdout
        assert len(done.stdout) < 1100
        assert (done.exit_code, done.stderr) == (0, b"short\n")


@pytest.mark.parametrize("image", IMAGES)
async def test_timeout_ends_the_whole_group(image: str, images: Any, opened: Any) -> None:
    async with opened(images[image], workdir="/tmp") as sandbox:
        command = "echo begun; (sleep 1; touch late) & trap '' TERM; sleep 1000"
        done = await sandbox.run(command, timeout=0.3)
        assert (done.exit_code, done.timed_out, done.stdout) == (None, True, b"begun\n")
        # The child would have written its file by now: SIGKILL comes a second after SIGTERM.
        assert done.seconds > 1
        done = await sandbox.run("[ ! -e late ] && echo gone", timeout=SECONDS)
        assert done.text == "gone\n"


@pytest.mark.parametrize("image", ["debian", "busybox"])
async def test_background_job_lives_on(image: str, images: Any, opened: Any) -> None:
    async with opened(images[image]) as sandbox:
        done = await sandbox.run("sleep 1000 & echo $!", timeout=SECONDS)
        assert done.exit_code == 0
        done = await sandbox.run(f"kill {int(done.text)}", timeout=SECONDS)
        assert done.exit_code == 0, done.text


@pytest.mark.parametrize("image", IMAGES)
async def test_killing_everything_leaves_a_working_sandbox(
    image: str, images: Any, opened: Any
) -> None:
    async with opened(images[image]) as sandbox:
        done = await sandbox.run("sleep 1000 & kill -9 -1; kill -9 $$", timeout=SECONDS)
        assert done.exit_code == 137
        assert (await sandbox.run("echo on", timeout=SECONDS)).text == "on\n"


async def test_commands_of_one_sandbox_take_turns(images: Any, opened: Any) -> None:
    async with opened(images["busybox"], workdir="/tmp") as sandbox:
        command = "[ ! -e busy ] && touch busy && sleep 0.1 && rm busy"
        runs = [sandbox.run(command, timeout=SECONDS) for _ in range(8)]
        assert [done.exit_code for done in await asyncio.gather(*runs)] == [0] * 8


async def test_long_command(images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        text = "x" * 500_000
        done = await sandbox.run(f"echo '{text}' | wc -c", timeout=SECONDS)
        assert done.text == "500001\n"


@pytest.mark.parametrize(
    ("command", "words"), [("echo a\0b", b"NUL"), ("x" * 1_000_001, b"longer than")]
)
async def test_what_no_shell_can_take(command: str, words: bytes, images: Any, opened: Any) -> None:
    async with opened(images["busybox"]) as sandbox:
        done = await sandbox.run(command, timeout=SECONDS)
        assert done.exit_code == 126
        assert words in done.stderr
