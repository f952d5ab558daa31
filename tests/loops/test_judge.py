"""The C rules against the Python ones, symbol by symbol and verdict by verdict."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import block, labelled_cases, prose

from minnow.loops import Lexicon, native
from minnow.loops.judge import TAIL, judge_many
from minnow.loops.symbols import Symbols, read_text, read_tokens
from minnow.native import Loaded

pytestmark = pytest.mark.skipif(native.load().library is None, reason=native.load().description)


def both(function: Callable[[], Any]) -> tuple[Any, Any]:
    """What C and what Python say."""
    found = native.load
    fast = function()
    native.load = lambda: Loaded(None, "Python")  # type: ignore[assignment]
    try:
        return fast, function()
    finally:
        native.load = found


def same_verdicts(rows: list[Symbols], ends: bool = False) -> int:
    """Asserts that both give the same verdicts; how many are loops."""
    offsets = np.cumsum([0, *(len(row) for row in rows)])
    raw = np.concatenate([row.raw for row in rows])
    classes, values = None, None
    if rows[0].classes is not None:
        classes = np.concatenate([row.classes for row in rows])  # type: ignore[misc]
        values = np.concatenate([row.values for row in rows])  # type: ignore[misc]
    fast, slow = both(lambda: judge_many(raw, classes, values, offsets, ends))
    assert fast.tolist() == slow.tolist()
    return int((fast["kind"] > 0).sum())


def test_the_same_verdicts_on_labelled_cases() -> None:
    cases = [case for case in labelled_cases(seed=1, each=2) if len(case.tokens) < 2500]
    assert same_verdicts([read_tokens(case.tokens) for case in cases], ends=True) > 30
    assert same_verdicts([read_text(case.text) for case in cases if case.text]) > 4


def test_the_same_verdicts_and_onsets_past_the_tail() -> None:
    rng = random.Random(2)
    few = [prose(rng, 9) for _ in range(4)]
    rows = [
        read_text(prose(rng, 300) + " " + "".join(f"Step {i}: the same again and again. " for i in range(1300))),
        read_text(prose(rng, 300) + " " + " ".join(rng.choice(few) for _ in range(1100))),
        read_text(prose(rng, 300) + " " + (prose(rng, 700) + " ") * 14),
    ]
    assert min(map(len, rows)) > TAIL and same_verdicts(rows) == 3


COLUMN = st.tuples(st.integers(0, 7), st.sampled_from([0, 0, 0, 1, 2, 3]), st.integers(-1, 2))
PIECES = st.lists(
    st.tuples(st.lists(COLUMN, min_size=1, max_size=14), st.integers(1, 30), st.floats(0, 0.15)), min_size=1, max_size=3
)


@settings(deadline=None, derandomize=True, max_examples=250)
@given(PIECES, st.integers(0, 10**6), st.booleans())
def test_the_same_verdicts_on_anything(pieces: list[Any], seed: int, ends: bool) -> None:
    """Rows of symbols of all classes, repeated with noise and with numbers that stay, count or jump."""
    rng = random.Random(seed)
    found: list[tuple[int, int, int]] = []
    for unit, times, noise in pieces:
        for copy in range(times):
            for code, kind, step in unit:
                if rng.random() < noise:
                    if rng.random() < 0.5:
                        found.append((rng.randint(0, 900), 0, 0))
                    continue
                value = 5 + copy * step if step < 2 else rng.randint(0, 30)
                found.append((100 * kind + code + (1000 * value if kind == 1 else 0), kind, value if kind == 1 else 0))
    raw, kinds, values = (np.array(column) for column in zip(*found or [(0, 0, 0)], strict=True))
    places = np.arange(raw.size)
    row = Symbols(
        raw.astype(np.uint32), kinds.astype(np.uint8), values.astype(np.int32), places, raw.size, raw.size - 1
    )
    same_verdicts([row], ends)
    same_verdicts([Symbols(row.raw, None, None, None, raw.size, raw.size - 1)], ends)


def same_symbols(read: Callable[[], Symbols]) -> Symbols:
    fast, slow = both(read)
    for name in ("raw", "classes", "values", "starts"):
        assert getattr(fast, name).tolist() == getattr(slow, name).tolist(), name
    assert (fast.size, fast.held) == (slow.size, slow.held)
    return fast


@settings(deadline=None, derandomize=True, max_examples=300)
@given(st.one_of(st.text(), st.text(alphabet="ab1 \n-\t桥é."), st.text(alphabet="0a \u00a0", max_size=80)))
def test_the_same_symbols_of_any_text(text: str) -> None:
    same_symbols(lambda: read_text(text))


def test_symbols_by_hand() -> None:
    symbols = same_symbols(lambda: read_text("Go 12 km, 河上!\n\n   x_1"))
    text = "Go 12 km, 河上!\n\n   x_1"
    assert [text[start] for start in symbols.starts] == list("G1k,河上!\n\n x_1")  # type: ignore[union-attr]
    assert symbols.classes.tolist() == [0, 1, 0, 2, 0, 0, 2, 3, 3, 3, 0, 2, 1]  # type: ignore[union-attr]
    assert symbols.values.tolist() == [0, 12, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]  # type: ignore[union-attr]
    assert (symbols.size, symbols.held) == (len(text), len(text) - 1)
    long = same_symbols(lambda: read_text("a" * 50 + "1" * 20))
    assert long.starts.tolist() == [0, 24, 48, 50, 59, 68]  # type: ignore[union-attr]


LEXICON = Lexicon(["", "a", " 1", "1", "23", "-", "\n", " ", "007", "1234567890"])


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.lists(st.integers(0, 12), max_size=40))
def test_the_same_symbols_of_any_tokens(tokens: list[int]) -> None:
    same_symbols(lambda: read_tokens(tokens, LEXICON))


def test_numbers_of_tokens_by_hand() -> None:
    symbols = same_symbols(lambda: read_tokens([1, 2, 3, 4, 2, 5, 8, 9, 11, 6], LEXICON))
    assert symbols.values.tolist() == [0, 1123, 1, 0, 7, 0, 0, 0]  # type: ignore[union-attr]
    assert symbols.classes.tolist() == [0, 1, 1, 2, 1, 0, 0, 3]  # type: ignore[union-attr]
    assert symbols.starts.tolist() == [0, 1, 4, 5, 6, 7, 8, 9]  # type: ignore[union-attr]


def test_no_compiler_is_said_and_python_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    native.load.cache_clear()
    monkeypatch.setenv("CC", "/no/such/compiler")
    try:
        assert native.load() == Loaded(None, "Python: no C compiler found")
        row = read_tokens(block(random.Random(0), 30) * 6)
        assert judge_many(row.raw, None, None, np.array([0, 180]))[0]["period"] == 30
        native.load.cache_clear()
        monkeypatch.setenv("MINNOW_LOOPS", "python")
        assert native.load().description == "Python: MINNOW_LOOPS=python"
    finally:
        native.load.cache_clear()
