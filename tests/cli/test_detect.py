from __future__ import annotations

import io
import json
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minnow.cli.loops import detect
from minnow.errors import UserError
from minnow.loops import RULES

ROUND = "on and on we go round " * 40


@pytest.fixture
def detected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[dict[str, Any]]]:
    """Rows of ``detect --json`` on the given bytes."""

    def run(data: bytes, **options: Any) -> list[dict[str, Any]]:
        file = tmp_path / "transcripts"
        file.write_bytes(data)
        detect(file, as_json=True, **options)
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    return run


def lines(*rows: dict[str, Any]) -> bytes:
    return "\n".join(map(json.dumps, rows)).encode()


def test_one_object_per_row(detected: Callable[..., list[dict[str, Any]]]) -> None:
    rows = detected(
        lines(
            {"text": "Vell is a town.", "finish_reason": "stop"},
            {"id": "b", "text": ROUND, "finish_reason": "length", "max_tokens": 240},
            {"id": 7, "tokens": [1, 2, 3, *[4, 5, 6] * 30], "finish_reason": "length"},
            {"tokens": [1]},
            {"text": ""},
            {"text": "It was cut here", "finish_reason": "length", "max_tokens": 4},
        )
    )
    keys = ["id", "loop", "kind", "onset", "period", "copies", "wasted", "confidence", "cause"]
    assert all(list(row) == keys for row in rows)
    assert [row["id"] for row in rows] == [1, "b", 7, 4, 5, 6]
    assert [row["loop"] for row in rows] == [False, True, True, False, False, False]
    assert [row["cause"] for row in rows] == [None, "loop", "loop", None, None, "budget"]
    assert (rows[1]["kind"], rows[1]["onset"], rows[1]["period"], rows[1]["copies"]) == ("period", 22, 22, 40.0)
    assert rows[1]["wasted"] == 0.975 and (rows[2]["onset"], rows[2]["period"]) == (6, 3)


def test_published_rules(detected: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = detected(lines({"answer": ROUND}), rule="antidoom", field="answer")
    assert (row["rule"], row["loop"], row["onset"], row["period"], row["copies"]) == ("antidoom", True, 22, 22, 40.0)
    assert [row["rule"] for row in detected(lines({"text": ROUND}), rule="all")] == list(RULES)
    with pytest.raises(UserError, match="do not say where a sentence ends"):
        detected(lines({"tokens": [1, 2]}), rule="repeated-sentences")


def test_plain_text_and_standard_input(
    detected: Callable[..., list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (row,) = detected(b"\n A start.\n" + ROUND.encode())
    assert row["loop"] and row["onset"] == 33
    stream = io.TextIOWrapper(io.BytesIO(lines({"text": ROUND}, {"text": "No."})))
    monkeypatch.setattr(sys, "stdin", stream)
    detect(Path("-"))
    out = capsys.readouterr().out
    assert out.startswith("1: period from 22, 40 copies of 22, 98% wasted, confidence 1.00\n2: no loop\n")
    assert "minnow: 1 of 2" in out


def test_bytes_that_are_not_utf8_are_said_and_read(
    detected: Callable[..., list[dict[str, Any]]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (row,) = detected(ROUND.encode() + "é".encode()[:1])
    assert row["loop"]
    file = tmp_path / "rows"
    file.write_bytes(b'{"text": "caf\xe9"}\n')
    detect(file)
    assert "line 1 of" in capsys.readouterr().err


def test_a_very_long_line(detected: Callable[..., list[dict[str, Any]]]) -> None:
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghij", k=7)) for _ in range(1000)]
    text = " ".join(rng.choices(words, k=1_000_000))
    assert [row["loop"] for row in detected(text.encode())] == [False]
    (row,) = detected(text.encode() + b" " + ROUND.encode() * 20)
    assert row["loop"] and row["onset"] == pytest.approx(len(text) + 23, abs=1)


def test_ten_million_tokens_in_a_line(detected: Callable[..., list[dict[str, Any]]]) -> None:
    (row,) = detected(lines({"text": "once upon " + "on and on we go round and round " * 1_250_000}))
    assert row["loop"] and row["period"] == 32


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b'{"text": "a"}\n{"text": 1}', "line 2 of .* has neither text in 'text'"),
        (b'{"text": "a"}\n{"text"', "line 2 of .* is not JSON"),
        (b'{"text": "a"}\n[1]', r"is not an object but \[1\]"),
        (b'{"tokens": [1, -2]}', "nor token ids"),
        (b'{"tokens": [1, 2.5]}', "nor token ids"),
        (b'{"text": "a", "max_tokens": 0}', "max_tokens that is none"),
        (b'{"text": "a", "finish_reason": 3}', "finish_reason"),
    ],
)
def test_bad_rows(detected: Callable[..., list[dict[str, Any]]], data: bytes, message: str) -> None:
    with pytest.raises(UserError, match=message):
        detected(data)


def test_bad_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean antidoom"):
        detect(tmp_path / "none", rule="antidom")
    with pytest.raises(UserError, match="does not exist"):
        detect(tmp_path / "none")
    with pytest.raises(UserError, match="cannot be read"):
        detect(tmp_path)
