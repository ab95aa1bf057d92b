"""Rows of a published dataset: parquet, JSON lines, or a folder of either.

Every complaint names the file, the row (counted from 1) and the field. Not covered: hubs and
archives; a dataset is a local path.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet

from skiff.errors import TaskError

SUFFIXES = (".parquet", ".jsonl")
_BATCH_ROWS = 64  # R2E-Gym rows hold whole source files: a few MB each


@dataclass(frozen=True)
class Row:
    """One row and where it stands."""

    file: Path
    number: int
    values: Mapping[str, Any]

    def error(self, field: str, what: str) -> TaskError:
        return TaskError(
            f"{field} {what}",
            where=f"{self.file}, row {self.number}",
            remedy="take the dataset as published, or leave the row out of the file",
        )

    def text(self, field: str, default: str | None = None) -> str:
        """A text field; absent or null gives `default`, or an error where there is none."""
        value = self.values.get(field)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self.error(field, "is missing" if value is None else "is no text")
        return value

    def names(self, field: str) -> tuple[str, ...]:
        """A list of texts, or a JSON string of one (SWE-bench writes both)."""
        value = self.values.get(field)
        if isinstance(value, str):
            value = self._json(field, value)
        if not isinstance(value, list) or not all(isinstance(name, str) for name in value):
            raise self.error(field, "is missing" if value is None else "is no list of names")
        return tuple(value)

    def mapping(self, field: str) -> dict[str, Any]:
        """A JSON string that holds an object."""
        value = self._json(field, self.text(field))
        if not isinstance(value, dict):
            raise self.error(field, "is no JSON object")
        return value

    def _json(self, field: str, text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError as error:
            raise self.error(field, f"is no JSON: {error}") from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows in order. Raises TaskError for a path that is no readable dataset."""
    files = [path]
    try:
        there = path.exists()
        if path.is_dir():
            files = sorted(file for file in path.rglob("*") if file.suffix in SUFFIXES)
    except OSError as error:
        raise TaskError(f"cannot be looked into: {error.strerror}", where=str(path)) from None
    if not files or not there or any(file.suffix not in SUFFIXES for file in files):
        raise TaskError(
            "is no dataset" if there else "does not exist",
            where=str(path),
            remedy=f"name a file that ends in {' or '.join(SUFFIXES)}, or a folder of such files",
        )
    for file in files:
        yield from _parquet(file) if file.suffix == ".parquet" else _json_lines(file)


def _parquet(file: Path) -> Iterator[Row]:
    number = 0
    try:
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(batch_size=_BATCH_ROWS):
                for values in batch.to_pylist():
                    number += 1
                    yield Row(file, number, values)
    except (pyarrow.ArrowException, OSError) as error:
        raise _unreadable(file, number, error) from error


def _json_lines(file: Path) -> Iterator[Row]:
    number = 0
    try:
        with file.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                values = json.loads(line)
                if not isinstance(values, dict):
                    raise Row(file, number, {}).error("the line", "is no JSON object")
                yield Row(file, number, values)
    except (ValueError, OSError) as error:
        raise _unreadable(file, number, error) from error


def _unreadable(file: Path, number: int, error: Exception) -> TaskError:
    return TaskError(
        f"cannot be read: {error}",
        where=f"{file}, row {number}" if number else str(file),
        remedy="the file is torn or of another format; copy it again",
    )
