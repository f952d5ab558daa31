"""Rows of JSON lines, JSON, Parquet and CSV, plain and compressed; what is wrong with one is said with its line."""

from __future__ import annotations

import gzip
import json
import lzma
from contextlib import suppress
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minnow.data.table import Faults, read_rows
from minnow.errors import UserError

ROWS = [{"id": "1", "text": "Ä"}, {"id": "2", "text": "b"}]


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()
    contents = {
        "a.jsonl": lines,
        "b.json": json.dumps(ROWS).encode(),
        "c.json": json.dumps({"version": "1.1", "data": ROWS}).encode(),
        "d.json": lines,  # as BFCL names its JSON lines
        "e.jsonl.gz": gzip.compress(lines),
        "f.jsonl.xz": lzma.compress(b"\xef\xbb\xbf" + lines + b"\n\n"),
        "g.csv": "id,text\n1,Ä\n2,b\n".encode(),
        "h.rows": lines,
    }
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "i.parquet")
    for name in [*contents, "i.parquet"]:
        rows = read_rows(tmp_path / name)
        assert [row.values for row in rows] == ROWS, name
        assert [row.number for row in rows] == [1, 2] and str(tmp_path / name) in rows[1].place


BAD = b'{"a": 1}\nnonsense\n[1]\n' + b"[" * 100_000 + b'\n{"a": 2}'


def test_bad_rows_stop_or_are_left_out_with_their_lines(tmp_path: Path) -> None:
    file = tmp_path / "bad.jsonl"
    file.write_bytes(BAD)
    with pytest.raises(UserError, match=f"line 2 of {file} is not JSON"):
        read_rows(file)
    faults = Faults(skip=True)
    assert [row.values for row in read_rows(file, faults)] == [{"a": 1}, {"a": 2}]
    assert [said.split(" of ")[0] for said in faults.found] == ["line 2", "line 3", "line 4"]


@pytest.mark.parametrize(
    "name, data, said",
    [
        ("none.jsonl", None, "does not exist"),
        ("empty.jsonl", b"\n", "holds no rows"),
        ("cut.jsonl.xz", lzma.compress(b"{}")[:-9], "damaged"),
        ("not.jsonl.gz", b"{}", "damaged"),
        ("latin.jsonl", '{"a": "Ä"}'.encode("latin-1"), "not UTF-8"),
        ("not.parquet", b"{}", "not a readable Parquet"),
        ("list.json", b"[1]", "entry 1 of"),
    ],
)
def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path: Path, name: str, data: bytes | None, said: str) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(UserError, match=said):
        read_rows(tmp_path / name)


@settings(deadline=None, derandomize=True, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=200))
def test_no_bytes_bring_a_traceback(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    file = tmp_path_factory.mktemp("table") / "any.jsonl"
    file.write_bytes(data)
    with suppress(UserError):
        assert all(isinstance(row.values, dict) for row in read_rows(file, Faults(skip=True)))
