"""The published rules as they run along an output: symbols come one at a time, each rule keeps what it needs.

:mod:`minnow.loops.rules` says what the rules are and where they come from.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+|[^\w\s]")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]?")

NOVELTY_WINDOW = {"characters": 4000, "tokens": 1000}
REPEATED_SHARE = 0.5
"""Repeated 4-grams, and repeated 3-grams in TRL's reward, from which the two shares count as a loop here; their sources
give numbers and no threshold."""


@dataclass(frozen=True)
class TextLoop:
    """``onset_character``: where the second copy begins, in characters, or in tokens of token ids. ``period`` is in
    the same unit, ``copies`` counts repeats; both are 0 for rules that know none."""

    onset_character: int
    period: int
    copies: float


def as_text_loop(starts: Sequence[int], run: tuple[int, int, float]) -> TextLoop:
    onset, period, copies = run
    return TextLoop(starts[onset], starts[onset] - starts[onset - period], copies)


class Stream(Protocol):
    """One rule over symbols that come one at a time, with the place at which each begins."""

    unit: str  # what it counts: "characters", "words" or "sentences"

    def add(self, symbol: Hashable, start: int) -> None: ...

    def verdict(self) -> TextLoop | None:
        """On all that came so far."""
        ...


class RuleWatch:
    """A published rule while an output is generated; text comes in pieces, token ids one or several at a time."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._pending = ""
        self._read = 0

    def push(self, piece: str | int | Sequence[int]) -> TextLoop | None:
        """Add a piece of text or tokens; the rule's verdict on what came so far, but for an unfinished last word."""
        if isinstance(piece, str):
            self._pending += piece
            self._take(final=False)
        else:
            if self._stream.unit == "sentences":
                raise ValueError("token ids do not say where a sentence ends; give this rule text")
            for token in [piece] if isinstance(piece, int) else np.asarray(piece).tolist():
                self._stream.add(token, self._read)
                self._read += 1
        return self._stream.verdict()

    def finish(self) -> TextLoop | None:
        """The verdict on the whole."""
        self._take(final=True)
        return self._stream.verdict()

    def _take(self, final: bool) -> None:
        unit, text = self._stream.unit, self._pending
        upto = len(text) if final or unit == "characters" else 0
        if unit == "characters":
            for place, character in enumerate(text):
                self._stream.add(ord(character), self._read + place)
        else:
            matches = list((WORD if unit == "words" else SENTENCE).finditer(text))
            if not final and matches:
                upto = matches.pop().start()
            for match in matches:
                self._stream.add(match.group(), self._read + match.start())
        self._read += upto
        self._pending = text[upto:]


class _Runs:
    """Lengths of the matches at every lag up to ``periods``, of the symbols so far."""

    def __init__(self, unit: str, periods: int) -> None:
        self.unit = unit
        self.periods = np.arange(1, periods + 1)
        self.lengths = np.zeros(periods, dtype=np.int64)  # symbols in a row that equal the one a period before
        self.size = 0
        self._ids: dict[Hashable, int] = {}
        self._kept = np.full(8 * periods, -1, dtype=np.int64)
        self._starts = np.zeros(8 * periods, dtype=np.int64)
        self._place = periods  # where the next symbol goes

    def match(self, symbol: Hashable, start: int) -> None:
        code = self._ids.setdefault(symbol, len(self._ids))
        periods, place = self.periods.size, self._place
        if place == self._kept.size:
            for kept in (self._kept, self._starts):
                kept[:periods] = kept[place - periods :].copy()
            place = periods
        self._kept[place], self._starts[place] = code, start
        self.lengths = (self.lengths + 1) * (self._kept[place - periods : place][::-1] == code)
        self._place = place + 1
        self.size += 1


class EarliestRun(_Runs):
    def __init__(self, unit: str, periods: int, copies: int, covered: int) -> None:
        super().__init__(unit, periods)
        self._needed = np.maximum(copies * self.periods, covered) - self.periods
        self._first = np.full(periods, -1, dtype=np.int64)  # symbol at which the period's first run begins
        self._matched = np.zeros(periods, dtype=np.int64)
        self._alive = np.zeros(periods, dtype=bool)
        self._places: list[int] = []

    def add(self, symbol: Hashable, start: int) -> None:
        self.match(symbol, start)
        self._places.append(start)
        self._alive &= self.lengths > 0
        self._matched[self._alive] += 1
        new = (self.lengths >= self._needed) & (self._first < 0)
        if new.any():
            self._first[new] = self.size - self.lengths[new] - self.periods[new]
            self._matched[new] = self.lengths[new]
            self._alive |= new

    def verdict(self) -> TextLoop | None:
        found = np.flatnonzero(self._first >= 0)
        if not found.size:
            return None
        onsets = self._first[found] + self.periods[found]
        best = found[onsets.argmin()]
        period, onset = int(self.periods[best]), int(onsets.min())
        return as_text_loop(self._places, (onset, period, (int(self._matched[best]) + period) / period))


class VllmTail(_Runs):
    def __init__(self, least: int, most: int, count: int) -> None:
        super().__init__("words", most)
        self._needed = (count - 1) * self.periods
        self._needed[: least - 1] = np.iinfo(np.int64).max
        self._places: list[int] = []

    def add(self, symbol: Hashable, start: int) -> None:
        self.match(symbol, start)
        self._places.append(start)

    def verdict(self) -> TextLoop | None:
        found = np.flatnonzero(self.lengths >= self._needed)
        if not found.size:
            return None
        period, matched = int(self.periods[found[0]]), int(self.lengths[found[0]])
        return as_text_loop(self._places, (self.size - matched, period, (matched + period) / period))


class Hiraoka(_Runs):
    def __init__(self) -> None:
        super().__init__("words", 45)
        self._history: deque[NDArray[np.bool_]] = deque(maxlen=46)
        self._best: tuple[int, int] | None = None
        self._places: list[int] = []

    def add(self, symbol: Hashable, start: int) -> None:
        self.match(symbol, start)
        self._places.append(start)
        equal = self.lengths >= 10
        self._history.append(equal)
        for index in np.flatnonzero(equal).tolist():
            period = index + 1
            if len(self._history) > period and self._history[-1 - period][index]:
                onset = self.size - 10 - period
                if self._best is None or (onset, period) < self._best:
                    self._best = onset, period

    def verdict(self) -> TextLoop | None:
        return None if self._best is None else as_text_loop(self._places, (*self._best, 3.0))


class ThirtyGrams:
    unit = "words"

    def __init__(self) -> None:
        self._last: deque[Hashable] = deque(maxlen=30)
        self._starts: deque[int] = deque(maxlen=30)
        self._places: dict[Hashable, list[int]] = defaultdict(list)
        self._often: list[int] | None = None

    def add(self, symbol: Hashable, start: int) -> None:
        self._last.append(symbol)
        self._starts.append(start)
        if len(self._last) == 30:
            places = self._places[tuple(self._last)]
            places.append(self._starts[0])
            if len(places) >= 20 and (self._often is None or places[0] < self._often[0]):
                self._often = places

    def verdict(self) -> TextLoop | None:
        if self._often is None:
            return None
        return TextLoop(self._often[1], int(np.median(np.diff(self._often))), float(len(self._often)))


class Sentences:
    unit = "sentences"

    def __init__(self) -> None:
        self._sentence: Hashable = None
        self._starts: list[int] = []
        self._found: list[int] | None = None

    def add(self, symbol: Hashable, start: int) -> None:
        sentence = " ".join(str(symbol).split())
        if not any(character.isalnum() for character in sentence):
            return
        if sentence != self._sentence:
            self._sentence, self._starts = sentence, []
        self._starts.append(start)
        if len(self._starts) == 4 and self._found is None:
            self._found = self._starts

    def verdict(self) -> TextLoop | None:
        if self._found is None:
            return None
        return TextLoop(self._found[1], self._found[1] - self._found[0], float(len(self._found)))


class RepeatedShare:
    unit = "words"

    def __init__(self, length: int) -> None:
        self._last: deque[Hashable] = deque(maxlen=length)
        self._starts: deque[int] = deque(maxlen=length)
        self._grams: set[Hashable] = set()
        self._count = 0
        self._onset = 0  # of the first repeated n-gram

    def add(self, symbol: Hashable, start: int) -> None:
        self._last.append(symbol)
        self._starts.append(start)
        if len(self._last) == self._last.maxlen:
            gram = tuple(self._last)
            if gram in self._grams and self._count == len(self._grams):
                self._onset = self._starts[0]
            self._grams.add(gram)
            self._count += 1

    def verdict(self) -> TextLoop | None:
        if not self._count or 1 - len(self._grams) / self._count <= REPEATED_SHARE:
            return None
        return TextLoop(self._onset, 0, 0.0)


class Novelty:
    """Windows are of characters where symbols are words, else of tokens; one that is less than half full when the
    output ends is judged together with the one before."""

    unit = "words"

    def __init__(self) -> None:
        self._last: deque[Hashable] = deque(maxlen=8)
        self._grams: set[Hashable] = set()
        self._windows: list[list[int]] = []  # [new, all] 8-grams
        self._size = 0
        self._end = 0

    def add(self, symbol: Hashable, start: int) -> None:
        self._size = NOVELTY_WINDOW["characters" if isinstance(symbol, str) else "tokens"]
        self._end = start
        self._last.append(symbol)
        if len(self._last) < 8:
            return
        gram = tuple(self._last)
        while len(self._windows) <= start // self._size:
            self._windows.append([0, 0])
        self._windows[-1][0] += gram not in self._grams
        self._windows[-1][1] += 1
        self._grams.add(gram)

    def verdict(self) -> TextLoop | None:
        windows = [tuple(window) for window in self._windows]
        if len(windows) > 1 and self._end % self._size < self._size // 2:
            (new, every), (last_new, last_every) = windows[-2:]
            windows[-2:] = [(new + last_new, every + last_every)]
        first = len(windows)
        while first and windows[first - 1][0] * 50 < windows[first - 1][1]:
            first -= 1
        return None if first == len(windows) else TextLoop(first * self._size, 0, 0.0)
