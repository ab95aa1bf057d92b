"""Published rows: parquet, JSON lines, and what is said about bad ones."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from skiff.errors import TaskError
from skiff.tasks.rows import Row, read_rows

ROWS = [{"id": "a", "names": ["x"]}, {"id": "b", "names": ["y", "z"]}]


def write_parquet(path: Path, rows: list[dict[str, Any]]) -> Path:
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def write_json_lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("name", "write"), [("d.parquet", write_parquet), ("d.jsonl", write_json_lines)]
)
def test_both_formats(tmp_path: Path, name: str, write: Any) -> None:
    rows = list(read_rows(write(tmp_path / name, ROWS)))
    assert [(row.number, row.values) for row in rows] == [(1, ROWS[0]), (2, ROWS[1])]


def test_a_folder_is_read_in_order(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    write_parquet(tmp_path / "data/train-00001-of-00002.parquet", ROWS[1:])
    write_parquet(tmp_path / "data/train-00000-of-00002.parquet", ROWS[:1])
    (tmp_path / "README.md").write_text("no rows")
    assert [row.text("id") for row in read_rows(tmp_path)] == ["a", "b"]


def test_missing_and_foreign_files(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="does not exist"):
        list(read_rows(tmp_path / "none.parquet"))
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(TaskError, match="is no dataset"):
        list(read_rows(tmp_path / "rows.csv"))


def test_torn_parquet(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "d.parquet", ROWS)
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(TaskError, match=r"d\.parquet: cannot be read"):
        list(read_rows(path))


def test_a_bad_line_is_named(tmp_path: Path) -> None:
    path = tmp_path / "d.jsonl"
    path.write_text('{"id": "a"}\n{"id": \n')
    with pytest.raises(TaskError, match=r"d\.jsonl, row 2: cannot be read"):
        list(read_rows(path))
    path.write_text("[1]\n")
    with pytest.raises(TaskError, match="row 1: the line is no JSON object"):
        list(read_rows(path))


def row(**values: Any) -> Row:
    return Row(Path("d.parquet"), 7, values)


def test_fields() -> None:
    assert row(a="x").text("a") == "x"
    assert row(a=None).text("a", "default") == "default"
    assert row(a=["x"]).names("a") == ("x",)
    assert row(a='["x", "y"]').names("a") == ("x", "y")
    assert row(a='{"t": "PASSED"}').mapping("a") == {"t": "PASSED"}


@pytest.mark.parametrize(
    ("read", "values", "complaint"),
    [
        ("text", {}, "a is missing"),
        ("text", {"a": 3}, "a is no text"),
        ("names", {}, "a is missing"),
        ("names", {"a": "[1"}, "a is no JSON"),
        ("names", {"a": [1]}, "a is no list of names"),
        ("mapping", {"a": "[]"}, "a is no JSON object"),
    ],
)
def test_bad_fields_name_file_row_and_field(
    read: str, values: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(TaskError, match=rf"d\.parquet, row 7: {complaint}") as caught:
        getattr(row(**values), read)("a")
    assert caught.value.remedy
