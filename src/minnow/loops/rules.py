"""Published loop rules, re-implemented for comparison; Minnow's own verdict is :mod:`minnow.loops.find`.

They disagree: some need 60 characters, others 20 copies of 30 words, some look anywhere and others only at the end,
and all but few take tables or code for loops. A rate is therefore given together with the rule's name.

Every rule reads text or token ids. Where a source counts model tokens, text is read as words and punctuation marks;
where it counts characters, token ids are counted instead. ``RULES[name](output)`` is the verdict on a whole output,
``rule_watch(name)`` the same while it is generated.
"""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+|[^\w\s]")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]?")

Output = str | Sequence[int] | NDArray[Any]

LONGEST_PERIOD = 2048
"""Words of the longest block that ``period-x-repeats-500`` tries; the source names no limit."""

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


def antidoom(output: Output) -> TextLoop | None:
    """A span repeated back to back at least 4 times over at least 60 characters, period 1 to 1,024, anywhere.

    Liquid AI, Antidoom (2026), which samples fingerprints and then verifies; here every period is compared in full.
    """
    run = _earliest_run(_characters(output), max_period=1024, copies=4, covered=60)
    return None if run is None else TextLoop(run[0], run[1], run[2])


def thirty_gram_x20(output: Output) -> TextLoop | None:
    """Some 30-gram occurs at least 20 times in the response (arXiv 2512.12895)."""
    return _through(_ThirtyGrams(), output)


def period_x_repeats_500(output: Output) -> TextLoop | None:
    """A block of k words repeated back to back l times with k · l > 500 ("numerical loop", arXiv 2601.05693)."""
    symbols, starts = _words(output)
    run = _earliest_run(_numbered(symbols), max_period=LONGEST_PERIOD, copies=2, covered=501)
    return None if run is None else _as_text_loop(starts, run)


def repeated_sentences(text: Output) -> TextLoop | None:
    """One sentence more than 3 times in a row ("statement loop", arXiv 2601.05693; in a row as in DITTO, 2206.02369).

    Raises:
        ValueError: token ids, which do not say where a sentence ends.
    """
    return _through(_Sentences(), text)


def vllm_tail(
    output: Output, min_pattern_size: int = 1, max_pattern_size: int = 128, min_count: int = 4
) -> TextLoop | None:
    """The last words are ``min_count`` copies of a pattern of the given sizes (vLLM's check_sequence_repetition)."""
    words, starts = _words(output)
    symbols = _numbered(words)
    for period in range(min_pattern_size, max_pattern_size + 1):
        matched = (min_count - 1) * period
        if matched + period > symbols.size:
            break
        if np.array_equal(symbols[-matched:], symbols[-matched - period : -period]):
            different = np.flatnonzero(symbols[period:] != symbols[:-period])
            start = int(different[-1]) + 1 if different.size else 0
            return _as_text_loop(starts, (start + period, period, (symbols.size - start) / period))
    return None


def hiraoka(output: Output) -> TextLoop | None:
    """The same 10-gram 3 times at equal intervals within 100 words, from the second on (Hiraoka & Inui 2024)."""
    words, starts = _words(output)
    symbols = _numbered(words)
    found: tuple[int, int, float] | None = None
    for period in range(1, 46):
        if symbols.size < 2 * period + 10:
            break
        equal = np.convolve(symbols[period:] == symbols[:-period], np.ones(10, dtype=np.int64), "valid") == 10
        places = np.flatnonzero(equal[:-period] & equal[period:])
        if places.size and (found is None or int(places[0]) + period < found[0]):
            found = int(places[0]) + period, period, 3.0
    return None if found is None else _as_text_loop(starts, found)


def seq_rep_4(output: Output) -> TextLoop | None:
    """More than half of the 4-grams are repeats (seq-rep-4, arXiv 1908.04319; the threshold is ours)."""
    return _through(_RepeatedShare(4), output)


def trl_reward(output: Output) -> TextLoop | None:
    """More than half of the 3-grams are repeats: TRL's repetition reward below -0.5 (the threshold is ours)."""
    return _through(_RepeatedShare(3), output)


def novelty_8_gram(output: Output) -> TextLoop | None:
    """Fewer than 2% of the word 8-grams of 4,000 characters are new, from some such window to the end (DSpark)."""
    return _through(_Novelty(), output)


def repeated_ngram_share(symbols: Sequence[Hashable], n: int = 4) -> float:
    """seq-rep-n: 1 - distinct n-grams / n-grams, 0 for fewer than n symbols (Welleck et al., arXiv 1908.04319)."""
    grams = [tuple(symbols[place : place + n]) for place in range(len(symbols) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def trl_ngram_penalty(symbols: Sequence[Hashable], n: int = 3, max_penalty: float = -1.0) -> float:
    """TRL's get_repetition_penalty_reward: ``max_penalty`` times the share of repeated n-grams (arXiv 2502.03373)."""
    return max_penalty * repeated_ngram_share(symbols, n)


def _characters(output: Output) -> NDArray[Any]:
    if isinstance(output, str):
        return np.frombuffer(output.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.asarray(output, dtype=np.int64)


def _words(output: Output) -> tuple[list[Hashable], Sequence[int]]:
    if isinstance(output, str):
        matches = list(WORD.finditer(output))
        return [match.group() for match in matches], [match.start() for match in matches]
    return np.asarray(output, dtype=np.int64).tolist(), range(len(output))


def _numbered(symbols: Sequence[Hashable]) -> NDArray[np.int64]:
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(symbol, len(ids)) for symbol in symbols], dtype=np.int64)


def _earliest_run(symbols: NDArray[Any], max_period: int, copies: int, covered: int) -> tuple[int, int, float] | None:
    """(start of the second copy, period, copies) of the earliest run of back-to-back copies, of all periods."""
    best: tuple[int, int, float] | None = None
    for period in range(1, min(max_period, symbols.size // copies) + 1):
        needed = max(copies * period, covered) - period
        changes = np.flatnonzero(symbols[period:] != symbols[:-period])
        edges = np.concatenate([[-1], changes, [symbols.size - period]])
        lengths = np.diff(edges) - 1
        enough = np.flatnonzero(lengths >= needed)
        if enough.size:
            start = int(edges[enough[0]]) + 1
            if best is None or start + period < best[0]:
                best = start + period, period, (int(lengths[enough[0]]) + period) / period
    return best


def _as_text_loop(starts: Sequence[int], run: tuple[int, int, float]) -> TextLoop:
    onset, period, copies = run
    return TextLoop(starts[onset], starts[onset] - starts[onset - period], copies)


# --- the same while an output is generated ---


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


def _through(stream: Stream, output: Output) -> TextLoop | None:
    watch = RuleWatch(stream)
    watch.push(output) if isinstance(output, str) else watch.push(np.asarray(output, dtype=np.int64).tolist())
    return watch.finish()


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


class _EarliestRun(_Runs):
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
        return _as_text_loop(self._places, (onset, period, (int(self._matched[best]) + period) / period))


class _VllmTail(_Runs):
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
        return _as_text_loop(self._places, (self.size - matched, period, (matched + period) / period))


class _Hiraoka(_Runs):
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
        return None if self._best is None else _as_text_loop(self._places, (*self._best, 3.0))


class _ThirtyGrams:
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


class _Sentences:
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


class _RepeatedShare:
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


class _Novelty:
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


RULES: dict[str, Callable[[Output], TextLoop | None]] = {
    "antidoom": antidoom,
    "30-gram-x20": thirty_gram_x20,
    "period-x-repeats-500": period_x_repeats_500,
    "repeated-sentences": repeated_sentences,
    "vllm-1..128-x4": vllm_tail,
    "vllm-16..1024-x4": partial(vllm_tail, min_pattern_size=16, max_pattern_size=1024),
    "hiraoka": hiraoka,
    "seq-rep-4": seq_rep_4,
    "trl-3-gram": trl_reward,
    "8-gram-novelty": novelty_8_gram,
}

_STREAMS: dict[str, Callable[[], Stream]] = {
    "antidoom": lambda: _EarliestRun("characters", 1024, copies=4, covered=60),
    "30-gram-x20": _ThirtyGrams,
    "period-x-repeats-500": lambda: _EarliestRun("words", LONGEST_PERIOD, copies=2, covered=501),
    "repeated-sentences": _Sentences,
    "vllm-1..128-x4": lambda: _VllmTail(1, 128, 4),
    "vllm-16..1024-x4": lambda: _VllmTail(16, 1024, 4),
    "hiraoka": _Hiraoka,
    "seq-rep-4": lambda: _RepeatedShare(4),
    "trl-3-gram": lambda: _RepeatedShare(3),
    "8-gram-novelty": _Novelty,
}


def rule_watch(name: str) -> RuleWatch:
    """A published rule (a key of ``RULES``) over an output that is being generated."""
    return RuleWatch(_STREAMS[name]())
