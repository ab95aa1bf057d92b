"""The file editor, on files of a temporary folder and with the shell of this machine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from skiff.agents.openhands.editor import CONTEXT_LINES, Edit, Editor
from skiff.sandbox.client import CommandResult


class HostSandbox:
    """A sandbox that is none: commands run in a shell of this machine."""

    async def run(self, command: str, *, timeout: float, cwd: str | None = None) -> CommandResult:
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        stdout, stderr = await process.communicate()
        return CommandResult(
            exit_code=process.returncode,
            stdout=stdout,
            stderr=stderr,
            timed_out=False,
            truncated=False,
            seconds=0.0,
        )

    async def read(self, path: str) -> bytes:
        return await asyncio.to_thread(Path(path).read_bytes)

    async def write(self, path: str, data: bytes, *, mode: int = 0o644) -> None:
        await asyncio.to_thread(Path(path).parent.mkdir, parents=True, exist_ok=True)
        await asyncio.to_thread(Path(path).write_bytes, data)
        await asyncio.to_thread(Path(path).chmod, mode)


@pytest.fixture
async def editor(stage: Callable[..., Any]) -> Editor:
    scene = stage(["hello"])
    scene.episode.sandbox = HostSandbox()
    scene.episode.begin([{"role": "user", "content": "hello"}])
    await scene.episode.generate()
    return Editor(scene.episode)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "a file.py"
    path.write_text("".join(f"line {i}\n" for i in range(1, 21)))
    path.chmod(0o755)
    return path


def content(path: Path) -> str:
    return path.read_text()


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


async def done(editor: Editor, command: str, path: Path | str, **fields: Any) -> str:
    text, failed = await editor.run(Edit(command, str(path), **fields))
    assert not failed, text
    return text


async def refused(editor: Editor, command: str, path: Path | str, **fields: Any) -> str:
    text, failed = await editor.run(Edit(command, str(path), **fields))
    assert failed, text
    return text


async def test_view_numbers_the_lines(editor: Editor, file: Path) -> None:
    text = await done(editor, "view", file)
    assert text.splitlines()[0] == "     1\tline 1"
    assert len(text.splitlines()) == 20


@pytest.mark.parametrize(
    ("view_range", "lines"),
    [([2, 3], [2, 3]), ([19, -1], [19, 20]), ([20, 99], [20]), ([20], [20])],
)
async def test_view_of_a_range(
    editor: Editor, file: Path, view_range: list[int], lines: list[int]
) -> None:
    text = await done(editor, "view", file, view_range=view_range)
    assert [int(line.split()[0]) for line in text.splitlines()] == lines


@pytest.mark.parametrize("view_range", [[0, 3], [21, -1], [5, 4], [-3, -1]])
async def test_a_range_outside_is_refused(
    editor: Editor, file: Path, view_range: list[int]
) -> None:
    assert "within 1 and 20" in await refused(editor, "view", file, view_range=view_range)


async def test_view_of_a_folder_lists_two_levels(editor: Editor, tmp_path: Path) -> None:
    for name in ("sub/deep/deeper", ".git/objects"):
        (tmp_path / name).mkdir(parents=True)
    text = await done(editor, "view", tmp_path)
    assert text.splitlines() == [str(tmp_path), f"{tmp_path}/sub", f"{tmp_path}/sub/deep"]


async def test_view_is_cut_in_the_middle(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "long").write_text("x" * 9000)
    assert "characters cut" in await done(editor, "view", tmp_path / "long")


async def test_an_empty_file_can_be_viewed(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert await done(editor, "view", tmp_path / "empty") == ""


async def test_create_ends_the_file_with_a_newline(editor: Editor, tmp_path: Path) -> None:
    await done(editor, "create", tmp_path / "new", file_text="a\nb")
    assert content(tmp_path / "new") == "a\nb\n"


async def test_create_makes_the_folders(editor: Editor, tmp_path: Path) -> None:
    await done(editor, "create", tmp_path / "x/y/new", file_text="a")
    assert content(tmp_path / "x/y/new") == "a\n"


async def test_create_does_not_overwrite(editor: Editor, file: Path) -> None:
    before = content(file)
    assert "exists already" in await refused(editor, "create", file, file_text="new")
    assert content(file) == before


async def test_replace_changes_the_one_place_and_shows_it(editor: Editor, file: Path) -> None:
    text = await done(editor, "str_replace", file, old_str="line 10\n", new_str="ten\nten\n")
    assert content(file).count("ten\n") == 2
    shown = [int(line.split("\t")[0]) for line in text.splitlines()[1:]]
    assert shown == list(range(10 - CONTEXT_LINES, 10 + CONTEXT_LINES + 1))


async def test_replace_without_new_text_deletes(editor: Editor, file: Path) -> None:
    await done(editor, "str_replace", file, old_str="line 10\n")
    assert "line 10\n" not in content(file)


@pytest.mark.parametrize(("old", "times"), [("line 1", 11), ("absent", 0)])
async def test_replace_of_a_text_that_is_not_unique_is_refused(
    editor: Editor, file: Path, old: str, times: int
) -> None:
    assert f"occurs {times} times" in await refused(
        editor, "str_replace", file, old_str=old, new_str="x"
    )


@pytest.mark.parametrize("line", [0, 7, 20])
async def test_insert_goes_after_the_line(editor: Editor, file: Path, line: int) -> None:
    await done(editor, "insert", file, insert_line=line, new_str="new")
    assert content(file).splitlines()[line] == "new"


async def test_insert_behind_a_line_without_newline(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("one")
    await done(editor, "insert", tmp_path / "a", insert_line=1, new_str="two")
    assert content(tmp_path / "a") == "one\ntwo\n"


@pytest.mark.parametrize("line", [None, -1, 21])
async def test_insert_outside_is_refused(editor: Editor, file: Path, line: int | None) -> None:
    text = await refused(editor, "insert", file, insert_line=line, new_str="new")
    assert "from 0 to 20" in text


async def test_edits_keep_the_mode(editor: Editor, file: Path) -> None:
    await done(editor, "str_replace", file, old_str="line 10\n", new_str="ten\n")
    assert mode(file) == 0o755


async def test_undo_goes_back_step_by_step(editor: Editor, file: Path) -> None:
    first = content(file)
    await done(editor, "insert", file, insert_line=0, new_str="a")
    second = content(file)
    await done(editor, "insert", file, insert_line=0, new_str="b")
    await done(editor, "undo_edit", file)
    assert content(file) == second
    await done(editor, "undo_edit", file)
    assert content(file) == first
    assert "no edit" in await refused(editor, "undo_edit", file)


async def test_undo_brings_a_removed_file_back(editor: Editor, file: Path) -> None:
    before = content(file)
    await done(editor, "insert", file, insert_line=0, new_str="a")
    await editor._episode.sandbox.run(f"rm '{file}'", timeout=9)
    await done(editor, "undo_edit", file)
    assert content(file) == before


async def test_mistakes_are_told(editor: Editor, tmp_path: Path) -> None:
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    assert "No such file" in await refused(editor, "view", tmp_path / "absent")
    assert "Is a directory" in await refused(editor, "str_replace", tmp_path, old_str="a")
    below = tmp_path / "binary/below"
    assert "File exists" in await refused(editor, "create", below, file_text="a")
    assert "not a text file" in await refused(editor, "view", tmp_path / "binary")
    assert "did you mean /folder/a.txt" in await refused(editor, "view", "a.txt")
    assert "file_text is missing" in await refused(editor, "create", tmp_path / "new")
    assert "old_str is missing" in await refused(editor, "str_replace", tmp_path / "binary")
    assert "new_str is missing" in await refused(editor, "insert", tmp_path / "binary")
