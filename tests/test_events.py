"""events.jsonl: appended by many, read while it grows, torn lines left out."""

from __future__ import annotations

import json
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest
from skiff import events
from skiff.files import write_atomic


def emit_many(run_dir: Path, writer: int) -> None:
    for number in range(200):
        events.emit(run_dir, "line", writer=writer, number=number, filler="x" * 500)


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    with ProcessPoolExecutor(3, mp_context=get_context("fork")) as pool:
        for done in [pool.submit(emit_many, tmp_path, writer) for writer in range(3)]:
            done.result()
    found = list(events.read(tmp_path))
    assert len(found) == len((tmp_path / events.FILE).read_text().splitlines()) == 600
    for writer in range(3):
        assert [e["number"] for e in found if e["writer"] == writer] == list(range(200))


def test_what_is_no_event_is_left_out(tmp_path: Path) -> None:
    events.emit(tmp_path, "first", path=Path("a"))
    with (tmp_path / events.FILE).open("ab") as file:
        file.write(b'{"kind": "torn\n\xff\xfe\n[1]\n\n')
    events.emit(tmp_path, "second")
    with (tmp_path / events.FILE).open("ab") as file:
        file.write(b'{"kind": "th')
    assert [event["kind"] for event in events.read(tmp_path)] == ["first", "second"]
    assert [event["path"] for event in events.read(tmp_path, "first")] == ["a"]
    assert list(events.read(tmp_path / "absent")) == []


def test_a_tail_gives_each_whole_line_once(tmp_path: Path) -> None:
    tail = events.Tail(tmp_path / events.FILE)
    assert list(tail.new()) == []
    events.emit(tmp_path, "one")
    line = json.dumps({"kind": "two"}) + "\n"
    with (tmp_path / events.FILE).open("a") as file:
        file.write(line[:5])
    assert [event["kind"] for event in tail.new()] == ["one"]
    assert list(tail.new()) == []
    with (tmp_path / events.FILE).open("a") as file:
        file.write(line[5:] + "garbage\n")
    assert [event["kind"] for event in tail.new()] == ["two"]


def test_a_tail_can_begin_at_the_end(tmp_path: Path) -> None:
    events.emit(tmp_path, "old")
    tail = events.Tail(tmp_path / events.FILE, skip_old=True)
    events.emit(tmp_path, "new")
    assert [event["kind"] for event in tail.new()] == ["new"]


def test_a_file_is_whole_or_as_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomic(path, "old", mode=0o600)
    assert path.stat().st_mode & 0o777 == 0o600

    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("skiff.files.os.fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
