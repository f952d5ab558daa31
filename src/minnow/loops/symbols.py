"""What the verdict reads: text or token ids as symbols of four classes, with whole numbers.

A counter is told from a copy, and a divider or the digits of a number from a word said over and over, by the classes.
Token ids alone do not say which of them spell digits: a :class:`Lexicon` does. Without one every id counts as a word.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.loops import native

WORD, NUMBER, MARK, BLANK = range(4)
LONGEST_WORD, LONGEST_NUMBER, LONGEST_SPACE = 24, 9, 16

# Ranges of code points, as in sort_of() of judge.c.
_SKIP = "\x00-\x08\x0b-\x1f\x7f-\x9f\u200b-\u200f\ufeff"
_SPACE = " \t\u00a0\u3000\u2000-\u200a"
_PUNCTUATION = (
    "!-/:-@\\[-`{-~\u00a1-\u00bf\u00d7\u00f7\u2010-\u2bff\u3001-\u303f\uff01-\uff0f\uff1a-\uff20\ufff0-\uffff"
)
_SINGLE = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u31ff\u3400-\u9fff\uac00-\ud7af\uf900-\ufaff\U0001f000-\U0003ffff"
)
_SYMBOL = re.compile(
    f"(?P<skip>[{_SKIP}])|(?P<number>[0-9]{{1,{LONGEST_NUMBER}}})|(?P<newline>\n)|(?P<space>[{_SPACE}]{{1,{LONGEST_SPACE}}})"
    f"|(?P<mark>[{_PUNCTUATION}])|(?P<single>[{_SINGLE}])"
    f"|(?P<word>[^{_SKIP}0-9\n{_SPACE}{_PUNCTUATION}{_SINGLE}]{{1,{LONGEST_WORD}}})"
)
Columns = tuple[NDArray[np.uint32], NDArray[np.uint8] | None, NDArray[np.int32] | None]
"""Identities, classes and values of symbols; None where every symbol counts as a word."""

_CLASS = {"number": NUMBER, "newline": BLANK, "space": BLANK, "mark": MARK, "single": WORD, "word": WORD}


@dataclass(frozen=True)
class Symbols:
    """``raw`` [n] uint32 identities, ``classes`` [n] uint8, ``values`` [n] int32 of the numbers, ``starts`` [n] int64:
    the character or token each begins with; ``size`` of the whole, ``held``: where the last symbol, which more input
    could lengthen, begins."""

    raw: NDArray[np.uint32]
    classes: NDArray[np.uint8] | None
    values: NDArray[np.int32] | None
    starts: NDArray[np.int64] | None
    size: int
    held: int

    def __len__(self) -> int:
        return self.raw.size

    def place(self, symbol: int) -> int:
        """The character or token at which a symbol begins; the end for the symbol after the last."""
        if symbol >= self.raw.size:
            return self.size
        return symbol if self.starts is None else int(self.starts[symbol])

    def after(self, begin: int) -> Columns:
        """The columns of the symbols from ``begin`` on."""
        if self.classes is None or self.values is None:
            return self.raw[begin:], None, None
        return self.raw[begin:], self.classes[begin:], self.values[begin:]


def joined(rows: Sequence[Symbols]) -> Columns:
    """The columns of several rows, all with classes or all without, end to end."""
    raw = np.concatenate([row.raw for row in rows])
    if rows[0].classes is None:
        return raw, None, None
    classes, values = (np.concatenate([getattr(row, name) for row in rows]) for name in ("classes", "values"))
    return raw, classes, values


class Lexicon:
    """The class of every token id of a vocabulary, from the text that each id decodes to (``""``: a special token)."""

    def __init__(self, pieces: Sequence[str]) -> None:
        size = len(pieces)
        self.classes = np.zeros(size, dtype=np.uint8)
        self.digits = np.zeros(size, dtype=np.uint8)
        self.values = np.zeros(size, dtype=np.int32)
        self.opens = np.zeros(size, dtype=np.uint8)
        for index, piece in enumerate(pieces):
            bare = piece.strip(" \t")
            if bare.isascii() and bare.isdigit() and len(bare) <= LONGEST_NUMBER:
                self.classes[index], self.digits[index], self.values[index] = NUMBER, len(bare), int(bare)
                self.opens[index] = piece[0] != bare[0]
            elif piece and not piece.strip():
                self.classes[index] = BLANK
            elif piece and not any(c.isalnum() for c in piece):
                self.classes[index] = MARK

    def __len__(self) -> int:
        return self.classes.size


def read_text(text: str) -> Symbols:
    """Words, numbers of up to nine digits, single marks, line ends and runs of spaces; single spaces are left out."""
    library = native.load().library
    if library is None:
        return _read_text(text)
    points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    size = points.size
    return _filled(size, lambda *room: library.read_text(points.ctypes.data, size, *room))


def read_tokens(tokens: Sequence[int] | NDArray[Any], lexicon: Lexicon | None = None) -> Symbols:
    """Token ids ``[n]`` as symbols; pieces of digits that follow each other become one number.

    Raises:
        ValueError: ``tokens`` is not one row of integers.
    """
    ids = np.ascontiguousarray(tokens, dtype=np.int32)
    if ids.ndim != 1:
        raise ValueError(f"a loop is looked for in one output's token ids, got an array of shape {ids.shape}")
    size = ids.size
    if lexicon is None:
        return Symbols(ids.view(np.uint32), None, None, None, size, max(0, size - 1))
    library = native.load().library
    if library is None:
        return _read_tokens(ids, lexicon)
    tables = [table.ctypes.data for table in (lexicon.classes, lexicon.digits, lexicon.values, lexicon.opens)]
    return _filled(size, lambda *room: library.read_tokens(ids.ctypes.data, size, len(lexicon), *tables, *room))


def _filled(size: int, read: Callable[..., int]) -> Symbols:
    """What ``read`` writes into room for ``size`` symbols."""
    raw, classes = np.empty(size, np.uint32), np.empty(size, np.uint8)
    values, starts, held = np.empty(size, np.int32), np.empty(size, np.int64), np.zeros(1, np.int64)
    found = read(*(array.ctypes.data for array in (raw, classes, values, starts, held)))
    return Symbols(raw[:found], classes[:found], values[:found], starts[:found], size, int(held[0]))


def mix(code: int) -> int:
    """A 32-bit finaliser (the constants are Chris Wellons' lowbias32)."""
    code ^= code >> 16
    code = code * 0x7FEB352D & 0xFFFFFFFF
    code ^= code >> 15
    code = code * 0x846CA68B & 0xFFFFFFFF
    return code ^ code >> 16


def _code(piece: str) -> int:
    code = 2166136261
    for character in piece:
        code = (code ^ ord(character)) * 16777619 & 0xFFFFFFFF
    return mix(code)


def _read_text(text: str) -> Symbols:
    codes: dict[str, int] = {}
    found, held = [], 0
    for match in _SYMBOL.finditer(text):
        kind, piece, held = str(match.lastgroup), match.group(), match.start()
        if kind == "skip" or (kind == "space" and len(piece) == 1):
            continue
        if piece not in codes:
            codes[piece] = _code(piece)
        found.append((codes[piece], _CLASS[kind], int(piece) if kind == "number" else 0, held))
    return _columns(found, len(text), held)


def _read_tokens(ids: NDArray[np.int32], lexicon: Lexicon) -> Symbols:
    found: list[tuple[int, int, int, int]] = []
    length, held = 0, 0
    for place, token in enumerate(ids.tolist()):
        known = 0 <= token < len(lexicon)
        if known and lexicon.classes[token] == NUMBER:
            digits, value = int(lexicon.digits[token]), int(lexicon.values[token])
            if length and not lexicon.opens[token] and length + digits <= LONGEST_NUMBER:
                code, _, before, start = found[-1]
                code = mix((code ^ token) * 16777619 & 0xFFFFFFFF)
                found[-1] = code, NUMBER, before * 10**digits + value, start
                length += digits
                continue
            length = digits
            found.append((token & 0xFFFFFFFF, NUMBER, value, place))
        else:
            length = 0
            found.append((token & 0xFFFFFFFF, int(lexicon.classes[token]) if known else WORD, 0, place))
        held = place
    return _columns(found, ids.size, held)


def _columns(found: list[tuple[int, int, int, int]], size: int, held: int) -> Symbols:
    raw, classes, values, starts = zip(*found, strict=True) if found else ((), (), (), ())
    return Symbols(
        np.array(raw, np.uint32), np.array(classes, np.uint8), np.array(values, np.int32), np.array(starts, np.int64),
        size, held,
    )  # fmt: skip
