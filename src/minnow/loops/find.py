"""Is this output caught in a loop, since where, and with which period?

A verdict says that the output is *still* looping at its last token: a model that repeats itself and then goes on
with something new has recovered. What exact-period rules miss (copies with small changes, shuffles of the same few
items) and what n-gram counters wrongly flag (tables, code, lists, worked arithmetic) sets the thresholds below; they
were chosen on generated cases of both (``tests/loops``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Tokens = NDArray[np.int64]

TAIL = 4096  # tokens looked at; longer outputs are judged by their end
GRAM = 4  # tokens of the n-grams whose recurrence is followed

# Exact copies. 48 tokens keep long numbers, dividers and short runs of equal rows out; four copies are asked of a
# line, three of a paragraph, which nobody writes out three times in a row.
EXACT_COVERED = 48
EXACT_COPIES = 4
LONG_PERIOD = 32
LONG_COPIES = 3

# Copies with small changes.
NEAR_COVERED = 128
NEAR_COPIES = 5
NEAR_EDITS = 0.1  # of the tokens covered; at 0.15 some JSON rows and worked sums pass
NEAR_NEW = 0.2  # of the 4-grams after the first copy; rows of a table or of JSON bring more
NEAR_LOOSE = 8  # edits without 4 equal tokens in a row between them end the repetition
NEAR_BAND = 0.15  # by how much of a period the length of single copies may differ

# No progress without a period: n-grams of the tail were nearly all there before, and most of them twice.
TEMPLATE_COVERED = 192
TEMPLATE_NEW = 0.03
TEMPLATE_TWICE = 0.85

# Still going on: of the last 32 n-grams at least half, and of the last 8 at least one, are old.
RECENT = 32
RECENT_OLD = 16
LATEST = 8


@dataclass(frozen=True)
class Loop:
    """A repetition that lasts to the end of an output; positions count tokens from the start of the output.

    ``kind`` is "token" (one token over and over), "period" (exact copies), "near_copy" (copies with at most 10%
    changed tokens) or "template" (the same pieces in changing order). ``onset`` is the first token of the second
    copy, where the output first repeats itself (as in Antidoom, and Hiraoka & Inui 2024); of a template, the first
    token of the stretch that brings nothing new. ``period`` is the primitive length of one copy in tokens; of a
    template, the typical distance at which a piece returns. ``copies`` counts the partial last copy as a fraction;
    ``end`` is one past the last token covered.
    """

    kind: str
    onset: int
    period: int
    copies: float
    end: int


def find_loop(tokens: Sequence[int] | NDArray[Any]) -> Loop | None:
    """The loop that ``tokens`` ([n] token ids, the output without its prompt) ends in, or None.

    Pass a finished output *with* its end-of-sequence token: an answer that ended by itself is then never a loop,
    whatever it repeated before.
    """
    everything = np.asarray(tokens, dtype=np.int64)
    if everything.ndim != 1:
        raise ValueError(f"find_loop takes one output's token ids, got an array of shape {everything.shape}")
    if everything.size < EXACT_COVERED:
        return None
    skipped = max(0, everything.size - TAIL)
    tail = everything[skipped:]
    previous, seen = _recurrence(tail)
    old = seen > 0
    if int(old[-RECENT:].sum()) < RECENT_OLD or not old[-LATEST:].any() or tail[-1] not in tail[:-1]:
        return None
    found = _exact(tail) or _near_copy(tail, previous, old) or _template(previous, seen)
    if found is None:
        return None
    kind, start, onset, period = found
    copies = (tail.size - start) / period
    return Loop(kind, onset + skipped, period, copies, everything.size)


def gram_codes(tokens: Tokens) -> NDArray[np.uint64]:
    """Codes [n - 3] of the 4-grams of ``tokens`` [n]: equal 4-grams have equal codes.

    Exact for ids below 65,536; above, different 4-grams may very rarely share a code.
    """
    code = np.zeros(max(0, tokens.size - GRAM + 1), dtype=np.uint64)
    for offset in range(GRAM):
        code = (code << np.uint64(16)) ^ tokens[offset : offset + code.size].astype(np.uint64)
    return code


def _recurrence(tokens: Tokens) -> tuple[Tokens, Tokens]:
    """For the 4-gram at each position: distance back to the one before (0 if none), and how many came before."""
    code = gram_codes(tokens)
    order = np.argsort(code, kind="stable")
    same = np.zeros(code.size, dtype=bool)
    same[1:] = code[order[1:]] == code[order[:-1]]
    distance = np.zeros(code.size, dtype=np.int64)
    distance[order[1:]] = np.where(same[1:], order[1:] - order[:-1], 0)
    rank = np.arange(code.size)
    first = np.maximum.accumulate(np.where(same, 0, rank))
    count = np.zeros(code.size, dtype=np.int64)
    count[order] = rank - first
    return distance, count


def _exact(tokens: Tokens) -> tuple[str, int, int, int] | None:
    """(kind, start, onset, period) of the exact repetition at the end, with its primitive period.

    Every period must bring the last 4 tokens back, so only the distances at which they occur are tried, shortest
    first; a period that holds for three copies and is not primitive has a shorter one that holds as well.
    """
    size = tokens.size
    places = np.flatnonzero(tokens[GRAM - 1 : -1] == tokens[-1]) + GRAM - 1
    for back in range(1, GRAM):
        places = places[tokens[places - back] == tokens[-1 - back]]
    for period in (size - 1 - places)[::-1].tolist():
        copies = LONG_COPIES if period >= LONG_PERIOD else EXACT_COPIES
        matched = max(copies * period, EXACT_COVERED) - period
        if matched + period > size:
            if period >= LONG_PERIOD:
                return None
            continue
        if not np.array_equal(tokens[size - matched :], tokens[size - matched - period : size - period]):
            continue
        different = np.flatnonzero(tokens[period:] != tokens[:-period])
        start = int(different[-1]) + 1 if different.size else 0
        return "token" if period == 1 else "period", start, start + period, period
    return None


def _near_copy(tokens: Tokens, distance: Tokens, old: NDArray[np.bool_]) -> tuple[str, int, int, int] | None:
    """(kind, start, onset, period) of copies with small changes at the end.

    The period is the commonest distance at which recent 4-grams return. The alignment runs backwards along it and
    may change its distance within a narrow band where tokens were put in or left out; every changed token and every
    token of such a shift counts as one edit.
    """
    recent = distance[-NEAR_COVERED:]
    recent = recent[recent > 0]
    period = int(np.bincount(recent).argmax())
    if tokens.size < max(NEAR_COVERED, NEAR_COPIES * period):
        return None
    band = int(NEAR_BAND * period)
    symbols = tokens.tolist()
    lags = sorted(range(period - band, period + band + 1), key=lambda moved: abs(moved - period))
    lag, edits, matches, loose, best = period, 0, 0, 0, 0
    place = len(symbols) - 1
    while place >= lag and loose <= NEAR_LOOSE:
        if symbols[place] == symbols[place - lag]:
            matches += 1
            covered = len(symbols) - place
            if matches >= GRAM:
                loose = 0
                if edits <= NEAR_EDITS * covered:
                    best = covered
        else:
            matches = 0
            changed = 1
            before = symbols[place - GRAM : place]
            if before != symbols[place - GRAM - lag : place - lag]:
                for moved in lags:
                    if place - GRAM >= moved and before == symbols[place - GRAM - moved : place - moved]:
                        changed = max(1, abs(moved - lag))
                        lag = moved
                        break
            edits += changed
            loose += changed
        place -= 1
    onset = max(len(symbols) - best, period)
    start = onset - period
    if len(symbols) - start < max(NEAR_COVERED, NEAR_COPIES * period) or (~old[onset:]).mean() > NEAR_NEW:
        return None
    return "near_copy", start, onset, period


def _template(distance: Tokens, seen: Tokens) -> tuple[str, int, int, int] | None:
    """(kind, start, onset, period) of a tail that brings nothing new although no period holds.

    A long block on its way to a third exact copy shows here first, 192 tokens after the second.
    """
    if seen.size < TEMPLATE_COVERED:
        return None
    tail = seen[-TEMPLATE_COVERED:]
    if (tail == 0).mean() >= TEMPLATE_NEW or (tail >= 2).mean() < TEMPLATE_TWICE:
        return None
    new = np.cumsum(seen[::-1] == 0)
    length = np.arange(1, seen.size + 1)
    holds = np.flatnonzero((new < TEMPLATE_NEW * length) & (seen[::-1] > 0))
    onset = seen.size - 1 - int(holds[-1])
    returns = distance[onset:]
    period = int(np.median(returns[returns > 0]))
    return "template", max(0, onset - period), onset, max(1, period)
