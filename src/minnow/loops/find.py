"""Is this output caught in a loop: since where, with which period, of which kind, and how sure is that?

A verdict says that the output is *still* looping where it ends: a model that repeats itself and then goes on with
something new has recovered. The evidence is in :mod:`minnow.loops.judge`, what is read as a symbol in
:mod:`minnow.loops.symbols`; here verdicts get their places in tokens or characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.loops.judge import KINDS, LATEST, TAIL, judge_many
from minnow.loops.symbols import Lexicon, Symbols, joined, read_text, read_tokens
from minnow.loops.tools import tool_cycle
from minnow.machine import usable_cores

_BATCH = 256  # outputs whose symbols are held side by side
_LONGEST_TEXT = 1 << 22  # characters read of one text, from its end
_STRETCH = 8 * TAIL  # characters at the end of a text that mostly hold the symbols a verdict looks at
_BOUNDARY = re.compile(r"\n| (?=[A-Za-z])")


@dataclass(frozen=True)
class Loop:
    """A repetition that lasts to the end of an output; positions count tokens, or characters where text was given.

    ``kind`` is "token" (one token over and over), "period" (exact copies), "counter" (copies in which a number goes
    on), "near_copy" (copies with small changes), "template" (the same pieces in changing order), "paraphrase" (the
    same few phrases in changing order) or "tool" (the same calls with the same results). ``onset`` is where the
    second copy begins and the output first repeats itself (as in Antidoom, and Hiraoka & Inui 2024); of a template or
    paraphrase, where the stretch begins that brings nothing new. ``period`` is the primitive length of one copy; of a
    template or paraphrase, the typical distance at which a piece returns. ``copies`` counts the partial last copy as
    a fraction; ``end`` is one past the last place covered. ``confidence`` is above 0 and at most 1: it grows with
    the copies and falls with their differences and with everything new behind them.
    """

    kind: str
    onset: int
    period: int
    copies: float
    end: int
    confidence: float = 1.0

    @property
    def wasted(self) -> float:
        """Share of the output, up to ``end``, that came after the onset."""
        return (self.end - self.onset) / self.end


def find_loop(tokens: Sequence[int] | NDArray[Any], lexicon: Lexicon | None = None) -> Loop | None:
    """The loop that ``tokens`` ([n] token ids, the output without its prompt) ends in, or None.

    Pass a finished output *with* its end-of-sequence token: an answer that ended by itself is then never a loop,
    whatever it repeated before. With a ``lexicon``, numbers are known as numbers: counters are found, and long
    numbers and dividers need more evidence than words.

    Raises:
        ValueError: ``tokens`` is not one row of integers.
    """
    return find_loops([tokens], lexicon, threads=1)[0]


def find_text_loop(text: str) -> Loop | None:
    """The loop that ``text`` (an output without its prompt) ends in, or None; positions are characters."""
    return find_text_loops([text], threads=1)[0]


def find_loops(
    outputs: Iterable[Sequence[int] | NDArray[Any]], lexicon: Lexicon | None = None, threads: int | None = None
) -> list[Loop | None]:
    """:func:`find_loop` of many outputs, in ``threads`` threads (all cores by default)."""

    def read(tokens: Sequence[int] | NDArray[Any]) -> Symbols:
        return read_tokens(tokens, lexicon)

    def judged(batch: list[Sequence[int] | NDArray[Any]]) -> list[Loop | None]:
        symbols = [read(tokens) for tokens in batch]
        skipped = [len(tokens) - each.size for tokens, each in zip(batch, symbols, strict=True)]
        return _judged(symbols, skipped, ends=True)

    return _in_batches(list(outputs), judged, threads)


def find_text_loops(texts: Iterable[str], threads: int | None = None) -> list[Loop | None]:
    """:func:`find_text_loop` of many outputs, in ``threads`` threads (all cores by default)."""

    def judged(batch: list[str]) -> list[Loop | None]:
        stretches = [_last_stretch(text) for text in batch]
        loops = _judged([symbols for symbols, _ in stretches], [before for _, before in stretches])
        # Where nothing loops at the end, what is before it does not matter; where something does, it may have begun there.
        longer = [row for row, loop in enumerate(loops) if loop is not None and stretches[row][1]]
        if longer:
            whole = [batch[row][-_LONGEST_TEXT:] for row in longer]
            skipped = [len(batch[row]) - len(text) for row, text in zip(longer, whole, strict=True)]
            for row, loop in zip(longer, _judged([read_text(text) for text in whole], skipped), strict=True):
                loops[row] = loop
        return [with_tools(text, loop) for text, loop in zip(batch, loops, strict=True)]

    return _in_batches(list(texts), judged, threads)


def _last_stretch(text: str) -> tuple[Symbols, int]:
    """The symbols of ``text``'s end, enough of them for a first verdict, and the characters before them."""
    # No symbol reaches over the end of a line, or over a space before a word: reading from there changes none of them.
    begin = _BOUNDARY.search(text, len(text) - _STRETCH, len(text) - _STRETCH // 2) if len(text) > _STRETCH else None
    if begin is not None:
        symbols = read_text(text[begin.end() :])
        if len(symbols) >= TAIL:
            return symbols, begin.end()
    return read_text(text[-_LONGEST_TEXT:]), max(0, len(text) - _LONGEST_TEXT)


def with_tools(text: str, loop: Loop | None, skipped: int = 0) -> Loop | None:
    """The verdict after a look at the tool calls in ``text``, ``skipped`` characters into the output."""
    cycle = tool_cycle(text)
    if cycle is None:
        return loop
    if cycle.copies:
        confidence = round(1 - 0.5 ** (cycle.copies - 1), 4)
        return Loop("tool", cycle.onset + skipped, cycle.period, cycle.copies, cycle.end + skipped, confidence)
    # Calls that bring other results, or other calls, are progress, however alike they look.
    return loop if loop is not None and loop.kind in ("token", "period") else None


def _in_batches(outputs: list[Any], judged: Any, threads: int | None) -> list[Loop | None]:
    batches = [outputs[place : place + _BATCH] for place in range(0, len(outputs), _BATCH)]
    threads = min(threads or usable_cores(), len(batches))
    if threads <= 1:
        return [loop for batch in batches for loop in judged(batch)]
    with ThreadPoolExecutor(threads) as pool:
        return [loop for found in pool.map(judged, batches) for loop in found]


def _judged(symbols: Sequence[Symbols], skipped: Sequence[int], ends: bool = False) -> list[Loop | None]:
    offsets = np.zeros(len(symbols) + 1, dtype=np.int64)
    np.cumsum([len(each) for each in symbols], out=offsets[1:])
    found = judge_many(*joined(symbols), offsets, ends)
    loops: list[Loop | None] = [None] * len(symbols)
    for row in np.flatnonzero(found["kind"]).tolist():
        loops[row] = as_loop(found[row], symbols[row], skipped[row])
    return loops


def as_loop(found: Any, symbols: Symbols, skipped: int) -> Loop:
    """The verdict on ``symbols``, which begin ``skipped`` places into the output."""
    kind = KINDS[found["kind"]]
    start, onset, period, end, edits = (int(found[name]) for name in ("start", "onset", "period", "end", "edits"))
    places = [symbols.place(each) for each in (start, onset, end)]
    copies = (end - start) / period
    # Half of the doubt goes with every further copy beyond two; what differs between the copies keeps its share.
    confidence = (1 - 0.5 ** (copies - 1)) * (1 - edits / (end - start)) * (1 - (len(symbols) - end) / (LATEST + 1))
    step = places[1] - places[0] if onset - start == period else round(period * (places[2] - places[1]) / (end - onset))
    return Loop(kind, places[1] + skipped, max(1, step), copies, places[2] + skipped, round(confidence, 4))
