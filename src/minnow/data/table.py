"""Rows out of the files that tasks and prompts come in: JSON lines, JSON, Parquet, CSV, plain or compressed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import pyarrow
import pyarrow.parquet

from minnow.data.documents import not_utf8, open_file
from minnow.errors import UserError
from minnow.files import as_row, json_row

G = TypeVar("G")
M = TypeVar("M")


class Row(NamedTuple):
    """One object of a file. ``place`` names it in errors, such as ``line 7 of FILE``; ``number`` counts from 1."""

    number: int
    place: str
    values: dict[str, Any]


@dataclass
class Faults:
    """What becomes of rows that cannot be used: the first stops everything, or all are left out and remembered.

    Attributes:
        found: a sentence for each row left out.
    """

    skip: bool = False
    found: list[str] = field(default_factory=list)

    def add(self, sentence: str) -> None:
        """One more such row.

        Raises:
            UserError: unless rows are skipped.
        """
        if not self.skip:
            raise UserError(sentence)
        self.found.append(sentence)

    def usable(self, make: Callable[[G], M], given: Iterable[G]) -> Iterator[M]:
        """What ``make`` makes of each; one that it refuses (UserError) is such a row."""
        for each in given:
            try:
                made = make(each)
            except UserError as error:
                self.add(str(error))
                continue
            yield made


def read_rows(file: Path, faults: Faults | None = None) -> list[Row]:
    """The objects of a file, blank lines left out.

    ``.json`` may hold a list, an object with its list under ``data`` (SQuAD), or, as BFCL has it, one object per line.
    A file of an unknown kind is read as JSON lines. All of them may end in ``.gz`` or ``.xz`` as well.

    Raises:
        UserError: the file is missing, a folder, damaged, not UTF-8 or holds no rows; or, unless ``faults`` skips such
            rows, one of them is no JSON object.
    """
    faults = faults or Faults()
    try:
        with open_file(file) as opened:
            data = opened.read()
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; check the path") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a file of rows, such as JSONL") from error
    kind = Path(file.stem if file.suffix.lower() in (".gz", ".xz") else file.name).suffix.lower()
    rows = list(_rows(data, kind, file, faults))
    if not rows:
        raise UserError(f"{file} holds no rows; give a file with one JSON object per line")
    return rows


def _rows(data: bytes, kind: str, file: Path, faults: Faults) -> Iterator[Row]:
    if kind == ".parquet":
        return _numbered(_parquet(data, file), "row", file, faults)
    if data.startswith(b"PK"):
        raise UserError(f"{file} is a workbook or an archive, not a table; save it as CSV or JSON lines")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise not_utf8(str(file), error.start) from error
    if kind == ".csv":
        return _numbered(csv.DictReader(io.StringIO(text)), "row", file, faults)
    if kind == ".json":
        with suppress(ValueError, RecursionError):
            whole = json.loads(text)
            inner = whole.get("data") if isinstance(whole, dict) else whole
            return _numbered(inner if isinstance(inner, list) else [whole], "entry", file, faults)
    lines = ((number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip())
    return _rows_of(lines, json_row, "line", file, faults)


def _numbered(entries: Iterable[Any], word: str, file: Path, faults: Faults) -> Iterator[Row]:
    return _rows_of(enumerate(entries, start=1), as_row, word, file, faults)


def _rows_of(
    given: Iterable[tuple[int, Any]], read: Callable[[Any, str], dict[str, Any]], word: str, file: Path, faults: Faults
) -> Iterator[Row]:
    def row(numbered: tuple[int, Any]) -> Row:
        number, entry = numbered
        place = f"{word} {number} of {file}"
        return Row(number, place, read(entry, place))

    return faults.usable(row, given)


def _parquet(data: bytes, file: Path) -> list[dict[str, Any]]:
    try:
        return pyarrow.parquet.read_table(pyarrow.BufferReader(data)).to_pylist()
    except pyarrow.ArrowException as error:
        raise UserError(f"{file} is not a readable Parquet file ({error}); fetch or write it again") from error
