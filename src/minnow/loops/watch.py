"""The verdicts of :mod:`minnow.loops.find` while outputs are being generated: rows of tokens, or one text."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.loops import native
from minnow.loops.find import Loop, as_loop, find_text_loop, with_tools
from minnow.loops.judge import FOUND, LATEST, LEAST, RECENT, RECENT_OLD, TAIL, judge_many
from minnow.loops.symbols import NUMBER, Lexicon, Symbols, read_text, read_tokens

_HELD = 2 * TAIL  # tokens of a row that are kept at least
_WORDS_OF_BITS = 2048
_TABLES = ("classes", "digits", "values", "opens")


CUT_AFTER = 768
"""Tokens that a loop has lasted before an answer is cut short for it: the least of those tried that cut none of the
real answers which would have ended, nor any of the benchmark's clean outputs (docs/results/guard.md)."""


_EXACT = ("token", "period")


def has_lasted(loop: Loop, persistence: int) -> bool:
    """Whether a loop that may still be left has gone on for long enough to be acted on.

    It has lasted ``persistence`` places since its onset (exact copies: two fifths of that, which even fewer outputs get
    out of) and makes up half of the output: a long record may hold a long stretch that brings nothing new. With 0
    every loop has.
    """
    if not persistence:
        return True
    least = 2 * persistence // 5 if loop.kind in _EXACT else persistence
    return loop.end - loop.onset >= least and loop.wasted >= 0.5


class LoopWatch:
    """Watches ``rows`` outputs and reports each row's loop once, at the first check that finds it.

    A row is checked whenever its length is a multiple of ``check_every``; a check that found nothing in a row that
    repeats itself puts its next one off by a thirty-second of what was judged, so that a token costs a bounded time
    whatever the row holds. The report is :func:`find_loop`'s answer for the row's tokens so far, of which the last
    16,384 are kept.

    Args:
        persistence: how long a loop must have lasted to be reported (:func:`has_lasted`), of every row or by row.
        text: ``text(row)`` is what the row's tokens so far spell, asked for when a loop other than exact copies is to
            be reported: it is only if the text ends in a loop too. Text knows records and tool calls that ids do not.
    """

    def __init__(
        self,
        rows: int,
        check_every: int = 8,
        lexicon: Lexicon | None = None,
        persistence: int | Callable[[int], int] = 0,
        text: Callable[[int], str] | None = None,
    ) -> None:
        if rows < 1 or check_every < 1:
            raise ValueError(f"LoopWatch needs at least one row and one push a check, got {rows} and {check_every}")
        self._rows, self._persistence, self._text = rows, persistence, text
        self._watch: _Rows | _PythonRows = (
            _PythonRows(rows, check_every, lexicon)
            if native.load().library is None
            else _Rows(rows, check_every, lexicon)
        )

    def push(self, tokens: NDArray[Any], active: NDArray[np.bool_]) -> dict[int, Loop]:
        """Append ``tokens[row]`` ([rows] ids) where ``active`` ([rows] bool); newly found loops by row."""
        looping = self._watch.push(tokens, active)
        found = {row: loop for row, loop in looping.items() if self._certain(row, loop)}
        for row in found:
            self._watch.settle(row, True)
        return found

    def _certain(self, row: int, loop: Loop) -> bool:
        persistence = self._persistence if isinstance(self._persistence, int) else self._persistence(row)
        if not has_lasted(loop, persistence):
            return False
        return self._text is None or loop.kind in _EXACT or find_text_loop(self._text(row)) is not None

    def reset(self, row: int, tokens: Sequence[int] = ()) -> None:
        """Forget a row: what it holds now is ``tokens``, in which no loop is looked for, and a new output follows."""
        self._watch.reset(row)
        self._watch.settle(row, True)
        active = np.arange(self._rows) == row
        for token in tokens:
            self._watch.push(np.full(self._rows, token), active)
        self._watch.settle(row, False)


class _State(ctypes.Structure):
    """watch_t of judge.c."""

    _fields_ = [(name, ctypes.c_int64) for name in ("rows", "capacity", "check_every", "vocabulary")] + [
        (name, ctypes.c_void_p)
        for name in (
            "tokens", "held", "lengths", "next", "last", "bits", "history", "reported", *_TABLES,
            "raw", "cls", "value", "start", "scratch", "found", "skipped",
        )
    ]  # fmt: skip


class _Rows:
    """The watch in C: one call a push."""

    def __init__(self, rows: int, check_every: int, lexicon: Lexicon | None) -> None:
        library = native.load().library
        assert library is not None
        self._push = library.watch_push
        self._lexicon = lexicon
        self._arrays: dict[str, NDArray[Any]] = {
            "tokens": np.zeros((rows, 256), np.int32),
            "held": np.zeros(rows, np.int64),
            "lengths": np.zeros(rows, np.int64),
            "next": np.full(rows, LEAST, np.int64),
            "last": np.zeros((rows, 4), np.uint32),
            "bits": np.zeros((rows, 2, _WORDS_OF_BITS), np.uint64),
            "history": np.zeros(rows, np.uint64),
            "reported": np.zeros(rows, np.uint8),
            "scratch": native.scratch(),
            "found": np.zeros(rows, FOUND),
            "skipped": np.zeros(rows, np.int64),
        }
        if lexicon is not None:
            self._arrays |= {name: getattr(lexicon, name) for name in _TABLES}
            for name, dtype in (("raw", np.uint32), ("cls", np.uint8), ("value", np.int32), ("start", np.int64)):
                self._arrays[name] = np.zeros(_HELD, dtype)
        self._state = _State(rows, 256, check_every, 0 if lexicon is None else len(lexicon))
        for name, array in self._arrays.items():
            setattr(self._state, name, array.ctypes.data)
        # A push costs a few microseconds, most of it Python: what C is given keeps its place.
        self._tokens, self._active, self._due = (
            np.zeros(rows, np.int64),
            np.zeros(rows, np.bool_),
            np.zeros(rows, np.uint8),
        )
        given = (self._tokens, self._active, self._due)
        self._given = (ctypes.byref(self._state), *(array.ctypes.data for array in given))
        self._longest = 0  # no row holds more tokens than this

    def push(self, tokens: NDArray[Any], active: NDArray[np.bool_]) -> dict[int, Loop]:
        if self._longest == self._state.capacity < 2 * _HELD:
            self._longest = int(self._arrays["held"].max())
            if self._longest == self._state.capacity:
                kept = self._arrays["tokens"]
                self._arrays["tokens"] = np.concatenate([kept, np.zeros_like(kept)], axis=1)
                self._state.capacity *= 2
                self._state.tokens = self._arrays["tokens"].ctypes.data
        self._longest = min(self._longest + 1, self._state.capacity)
        self._tokens[:], self._active[:] = tokens, active
        if not self._push(*self._given):
            return {}
        return {row: self._loop(row) for row in np.flatnonzero(self._due).tolist()}

    def _loop(self, row: int) -> Loop:
        begin = int(self._arrays["skipped"][row])
        size = int(self._arrays["lengths"][row]) - begin
        held = int(self._arrays["held"][row])
        symbols = read_tokens(self._arrays["tokens"][row, held - size : held], self._lexicon)
        return as_loop(self._arrays["found"][row], symbols, begin)

    def settle(self, row: int, settled: bool) -> None:
        """While it is settled, a row is read and not looked at."""
        self._arrays["reported"][row] = settled

    def reset(self, row: int) -> None:
        for name in ("held", "lengths", "last", "bits", "history", "reported"):
            self._arrays[name][row] = 0
        self._arrays["next"][row] = LEAST


class _PythonRows:
    """The same where there is no compiler."""

    def __init__(self, rows: int, check_every: int, lexicon: Lexicon | None) -> None:
        self._check_every, self._lexicon = check_every, lexicon
        self._most = _HELD if lexicon else TAIL
        self._rows = [_Row() for _ in range(rows)]

    def push(self, tokens: NDArray[Any], active: NDArray[np.bool_]) -> dict[int, Loop]:
        found = {}
        for index in np.flatnonzero(active).tolist():
            row, token = self._rows[index], int(tokens[index])
            number = self._lexicon is not None and 0 <= token < len(self._lexicon)
            number = number and self._lexicon.classes[token] == NUMBER  # type: ignore[union-attr]
            row.append(token, -1 if number else token)
            if row.length % self._check_every == 0 and row.due():
                size = min(len(row.tokens), self._most)
                symbols = read_tokens(row.tokens[-size:], self._lexicon)
                row.next = row.length + max(size // 32, self._check_every)
                begin = max(0, len(symbols) - TAIL)
                verdict = judge_many(*symbols.after(begin), np.array([0, len(symbols) - begin]), ends=True)[0]
                if verdict["kind"]:
                    for name in ("start", "onset", "end"):
                        verdict[name] += begin
                    found[index] = as_loop(verdict, symbols, row.length - size)
        return found

    def settle(self, row: int, settled: bool) -> None:
        self._rows[row].reported = settled

    def reset(self, row: int) -> None:
        self._rows[row] = _Row()


class _Row:
    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.length = 0
        self.next = LEAST
        self.reported = False
        self._last = (0, 0, 0, 0)
        self._grams: tuple[set[tuple[int, ...]], set[tuple[int, ...]]] = set(), set()
        self._history = 0  # bit i: the 4-gram i tokens back had occurred before

    def append(self, token: int, masked: int) -> None:
        self.tokens.append(token)
        if len(self.tokens) == 2 * _HELD:
            del self.tokens[:_HELD]
        self.length += 1
        self._last = (*self._last[1:], masked)
        if self.length % TAIL == 0:
            self._grams = set(), self._grams[0]
        if self.length >= 4:
            self._history = self._history << 1 & (1 << 64) - 1 | any(self._last in grams for grams in self._grams)
            self._grams[0].add(self._last)

    def due(self) -> bool:
        """What the verdict asks for first, seen without it."""
        if self.reported or self.length < self.next or not self._history & (1 << LATEST + 1) - 1:
            return False
        return (self._history & (1 << RECENT + LATEST) - 1).bit_count() >= RECENT_OLD


class TextWatch:
    """Watches one text that comes in pieces, such as a server's stream or standard input, in bounded memory.

    ``push`` returns the loop once, when it is found; ``finish`` reads what was held back (the last symbol, which more
    text could have lengthened) and returns the verdict on the whole: :func:`find_text_loop`'s, as far as the last
    8,192 symbols hold it.

    Args:
        check_every: symbols between two looks.
        persistence: characters that a loop must have lasted to be reported (:func:`has_lasted`).
        text: what the output holds already; it is not looked at before more comes.
    """

    def __init__(self, check_every: int = 64, persistence: int = 0, text: str = "") -> None:
        self._check_every, self._persistence = check_every, persistence
        self._symbols = read_text("")
        self._pending = ""
        self._text = ""  # for the tool calls
        self._read = 0  # characters turned into symbols
        self._next = LEAST
        self._count = 0
        self._reported = True
        self.push(text)
        self._reported = False

    def push(self, piece: str) -> Loop | None:
        self._text += piece
        self._pending += piece
        symbols = read_text(self._pending)
        self._take(symbols, symbols.held)
        if self._reported or self._count < self._next:
            return None
        loop = self._verdict()
        self._next = self._count + max(self._check_every, len(self._symbols) // 32)
        self._reported = loop is not None and has_lasted(loop, self._persistence)
        return loop if self._reported else None

    def finish(self) -> Loop | None:
        self._take(read_text(self._pending), len(self._pending))
        return self._verdict()

    def _take(self, symbols: Symbols, upto: int) -> None:
        """Keep the symbols that begin before ``upto``, and of the text what comes from there on."""
        assert symbols.starts is not None and self._symbols.starts is not None
        count = int(np.searchsorted(symbols.starts, upto))
        kept = self._symbols
        raw, classes, values, starts = (
            np.concatenate([getattr(kept, name), getattr(symbols, name)[:count] + shift])[-TAIL:]
            for name, shift in (("raw", 0), ("classes", 0), ("values", 0), ("starts", self._read))
        )
        self._count += count
        self._read += upto
        self._pending = self._pending[upto:]
        self._symbols = Symbols(raw, classes, values, starts, self._read, self._read)
        if len(self._text) > 1 << 18:
            self._text = self._text[-(1 << 17) :]

    def _verdict(self) -> Loop | None:
        symbols = self._symbols
        offsets = np.array([0, len(symbols)])
        found = judge_many(*symbols.after(0), offsets)[0]
        loop = as_loop(found, symbols, 0) if found["kind"] else None
        return with_tools(self._text, loop, self._read + len(self._pending) - len(self._text))
