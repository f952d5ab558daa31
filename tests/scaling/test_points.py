"""Tables of runs: every format, and every way in which they can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.scaling.points import Columns, Points, parse_count, read_points

ROWS = [{"params": n * 1e6, "tokens": d * 1e9, "loss": 4 - 0.1 * n - 0.01 * d} for n in (1, 2, 4) for d in (1, 2, 4)]


def csv_file(folder: Path, rows: list[dict[str, Any]], name: str = "runs.csv") -> Path:
    file = folder / name
    lines = [",".join(rows[0]), *(",".join(str(value) for value in row.values()) for row in rows)]
    file.write_text("\n".join(lines) + "\n")
    return file


def changed(row: int, **values: Any) -> list[dict[str, Any]]:
    return [one | values if place == row else dict(one) for place, one in enumerate(ROWS)]


def read(file: Path, where: tuple[str, ...] = (), **columns: str | None) -> Points:
    return read_points([file], Columns(**columns), where)


def test_every_format_gives_the_same_points(tmp_path: Path) -> None:
    jsonl, parquet = tmp_path / "runs.jsonl", tmp_path / "runs.parquet"
    jsonl.write_text("\n".join(json.dumps(row) for row in ROWS))
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), parquet)
    for file in (csv_file(tmp_path, ROWS), jsonl, parquet):
        points = read(file)
        assert points.params.tolist() == [row["params"] for row in ROWS]
        assert points.loss.tolist() == [row["loss"] for row in ROWS]
        assert points.places[3] == f"{'line' if file == jsonl else 'row'} 4 of {file}"


def test_flops_stand_in_for_tokens_or_for_parameters(tmp_path: Path) -> None:
    file = csv_file(tmp_path, [row | {"C": 6 * row["params"] * row["tokens"]} for row in ROWS])
    for columns in ({"tokens": None}, {"params": None}, {}):
        points = read(file, flops="C", **columns)
        np.testing.assert_allclose(points.tokens, [row["tokens"] for row in ROWS])
        np.testing.assert_allclose(points.params, [row["params"] for row in ROWS])


def test_suffixes_are_read_and_columns_have_any_name(tmp_path: Path) -> None:
    rows = [
        {"N": f"{int(row['params'] / 1e6)}M", "D": f"{int(row['tokens'] / 1e9)}B", "nll": row["loss"]} for row in ROWS
    ]
    assert read(csv_file(tmp_path, rows), params="N", tokens="D", loss="nll").params[0] == 1e6


@pytest.mark.parametrize(
    ("where", "count"),
    [(("loss>3.8",), 3), (("ratio<=1000",), 6), (("params=2M", "tokens!=1B"), 2), (("flops<1.3e16",), 3)],
)
def test_where_keeps_the_rows_that_meet_all_conditions(tmp_path: Path, where: tuple[str, ...], count: int) -> None:
    assert len(read(csv_file(tmp_path, ROWS), where)) == count


def test_a_run_folder_gives_its_pretrain_stages(tmp_path: Path) -> None:
    for stage, kind in (("pretrain", "pretrain"), ("sft", "sft"), ("unfinished", "pretrain")):
        folder = tmp_path / stage
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"kind": kind}))
        result = {"parameters": 1_493_952, "tokens": 60e6, "held_out_loss": 1.9, "corpus_tokens": 9e6}
        (folder / "result.json").write_text(json.dumps(result))
        if stage != "unfinished":
            (folder / "done.json").write_text("{}")
    points = read(tmp_path, unique="unique")
    assert points.unique is not None
    assert (points.params[0], points.loss[0], points.unique[0], len(points)) == (1_493_952, 1.9, 9e6, 1)


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        (changed(2, loss=-1.0), "row 3 of .*runs.csv: loss is '-1.0'; it must be a positive number"),
        (changed(2, params=0), "params is '0'"),
        (changed(2, tokens="many"), "tokens is 'many'"),
        (changed(2, loss="nan"), "loss is 'nan'"),
        (changed(4, params=350), "row 5 of .*runs.csv has 350 parameters while .* mixed units"),
        ([row | {"params": row["params"] / 1e6} for row in ROWS], "has 1 parameters; write plain counts"),
        (changed(4, tokens=2e6), "tokens jump from 2M to 1B with nothing between: mixed units"),
        (changed(4, loss=38.2), "has a loss of 38.2 nats, .* not the perplexity"),
        ([*ROWS, ROWS[3]], "row 10 of .*runs.csv repeats row 4 of .*runs.csv"),
        (
            [row | {"dataset": "c4" if place % 2 else "books"} for place, row in enumerate(ROWS)],
            r"losses of 2 data sets \(books, c4\); .* --where dataset=books",
        ),
        ([{"size": 1, "tokens": 2, "loss": 3}], r"has no column params; name the column with --params \(there are: size"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], said: str) -> None:
    with pytest.raises(UserError, match=said):
        read(csv_file(tmp_path, rows))


def test_flops_that_disagree_are_mixed_units(tmp_path: Path) -> None:
    rows = [
        row | {"C": 6 * row["params"] * row["tokens"] * (1e3 if place == 1 else 1)} for place, row in enumerate(ROWS)
    ]
    with pytest.raises(UserError, match="row 2 of .*runs.csv names .* FLOPs but 6 N D is .* mixed units"):
        read(csv_file(tmp_path, rows), flops="C")


def test_one_data_set_may_be_chosen_and_the_others_may_hold_anything(tmp_path: Path) -> None:
    rows = [row | {"dataset": "c4"} for row in ROWS] + [{"params": 1, "tokens": 0, "loss": "", "dataset": "books"}]
    assert len(read(csv_file(tmp_path, rows), ("dataset=c4",))) == len(ROWS)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("runs.csv", "params,tokens,loss\n", "holds no rows"),
        ("runs.jsonl", "{", "is not JSON"),
        ("runs.jsonl", "[1]\n", r"is not an object but \[1\]"),
        ("runs.parquet", "no", "is not a readable Parquet file"),
        ("runs.xlsx", "PK\3\4", "is a workbook or an archive, not a table; save it as CSV"),
    ],
)
def test_files_that_are_no_tables(tmp_path: Path, name: str, content: str, said: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(UserError, match=said):
        read(tmp_path / name)


def test_no_file_no_stage_and_conditions_that_are_none(tmp_path: Path) -> None:
    file = csv_file(tmp_path, ROWS)
    with pytest.raises(UserError, match="does not exist"):
        read(tmp_path / "missing.csv")
    with pytest.raises(UserError, match="holds no finished pretrain stage"):
        read(tmp_path)
    with pytest.raises(UserError, match="name at least one file"):
        read_points([], Columns())
    with pytest.raises(UserError, match="is no condition"):
        read(file, ("loss",))
    with pytest.raises(UserError, match="has no column speed"):
        read(file, ("speed=1",))
    with pytest.raises(UserError, match="no row of 9 meets loss>9"):
        read(file, ("loss>9",))
    with pytest.raises(UserError, match="is no number; use = or !="):
        read(file, ("loss<low",))


@given(st.floats(1e-6, 1e25))
def test_numbers_are_read_as_they_are_written(value: float) -> None:
    assert parse_count(repr(value)) == value
    assert parse_count(f"{value:,.3f}") == pytest.approx(float(f"{value:.3f}"))


@given(st.text(max_size=12))
def test_any_text_is_a_number_or_none(text: str) -> None:
    found = parse_count(text)
    assert found is None or isinstance(found, float)


def test_suffixes() -> None:
    assert [parse_count(text) for text in ("350M", "28T", "1.5e3k", "2 b")] == [350e6, 28e12, 1.5e6, 2e9]
    assert [parse_count(text) for text in ("", "M", "1.2.3", None, True, "12 miles")] == [None] * 6
