"""The verdict on symbols: four channels of evidence, each up to where the output ends.

1. *Exact period*: the shortest period that the end has, by the failure function of the reversed end.
2. *Counter*: the same with every number taken as one symbol, where the numbers stay or go on in equal steps.
3. *Near copy*: one distance at which the end matches itself but for a few symbols, put in, left out or replaced.
   Changes that come in the same columns of every copy are what a table tells; changes anywhere are noise.
4. *No progress*: nearly every 4-gram (or, over a longer stretch, every pair) was there before and most of them twice.

How much evidence is asked for depends on what repeats: words least, structure (code, JSON, tables: fewer than half of
the symbols are words) more, marks and digits most. Everything is linear in the symbols and looks at the last ``TAIL``
of them; ``judge.c`` holds the same rules for speed, in integers, and the tests compare the two.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from minnow.loops import native
from minnow.loops.symbols import BLANK, MARK, NUMBER, WORD

TAIL = 8192  # symbols judged; the onset of a loop that fills them is looked for further back
LEAST = 48  # symbols below which nothing is a loop
LATEST = 8  # new 4-grams at the very end that a loop may have
RECENT, RECENT_OLD = 32, 16  # of the 4-grams before them, how many must have occurred before

KINDS = ("", "token", "period", "counter", "near_copy", "template", "paraphrase")
NONE, TOKEN, PERIOD, COUNTER, NEAR_COPY, TEMPLATE, PARAPHRASE = range(7)
FOUND = np.dtype(
    [(name, np.int32) for name in ("kind", "start", "onset", "period", "end", "edits", "slots", "reserved")]
)

# (kind, length of the n-grams, symbols at least, new ones per thousand at most)
TEMPLATE_RULE = (TEMPLATE, 4, 192, 30)
PARAPHRASE_RULE = (PARAPHRASE, 2, 320, 20)

_NUMBER_SYMBOL = 1

Found = tuple[int, int, int, int, int, int, int]
"""kind, start, onset, period, end, edits, slots"""


def judge_many(
    raw: NDArray[np.uint32],
    classes: NDArray[np.uint8] | None,
    values: NDArray[np.int32] | None,
    offsets: NDArray[np.int64],
    ends: bool = False,
) -> NDArray[np.void]:
    """Verdicts [rows] of dtype ``FOUND`` on rows of symbols; row r is ``[offsets[r], offsets[r + 1])``.

    Args:
        classes, values: of the symbols; None where each counts as a word.
        ends: a last symbol that is new and no number says that the output has ended or goes on with something else.
    """
    found = np.zeros(offsets.size - 1, dtype=FOUND)
    library = native.load().library
    if library is not None:
        arrays = map(native.address, (raw, classes, values, offsets))
        room = native.scratch()
        library.judge_many(*arrays, found.size, int(ends), room.ctypes.data, found.ctypes.data)
        return found
    for row in range(found.size):
        span = slice(int(offsets[row]), int(offsets[row + 1]))
        one = _whole(
            raw[span].tolist(),
            None if classes is None else classes[span].tolist(),
            None if values is None else values[span].tolist(),
            ends,
        )
        if one is not None:
            found[row] = (*one, 0)
    return found


def _whole(raw: list[int], classes: list[int] | None, values: list[int] | None, ends: bool) -> Found | None:
    """The verdict on the end of a row, with an onset that may lie before it."""

    def part(begin: int, end: int, ends: bool) -> Found | None:
        cut = slice(begin, end)
        found = judge(
            raw[cut], None if classes is None else classes[cut], None if values is None else values[cut], ends
        )
        return found and (found[0], found[1] + begin, found[2] + begin, found[3], found[4] + begin, *found[5:])

    begin = max(0, len(raw) - TAIL)
    found = part(begin, len(raw), ends)
    # A loop that fills the tail began before it: judge earlier stretches, each half a tail back, while they loop too.
    while found and begin > 0 and found[1] - begin < found[3] + 64:
        end = begin + TAIL // 2
        start = max(0, end - TAIL)
        for attempt in range(4):
            earlier = part(start, end - 37 * attempt, False)
            if earlier and earlier[2] < found[2]:
                found, begin = (found[0], *earlier[1:3], *found[3:]), start
                break
        else:
            break
    return found


def judge(raw: list[int], classes: list[int] | None, values: list[int] | None, ends: bool = False) -> Found | None:
    """The verdict on at most ``TAIL`` symbols."""
    size = len(raw)
    if size < LEAST:
        return None
    if ends and not (classes and classes[-1] == NUMBER) and raw[-1] not in raw[:-1]:
        return None
    masked = raw
    if classes:
        masked = [_NUMBER_SYMBOL if kind == NUMBER else code for code, kind in zip(raw, classes, strict=True)]
    back, again = _recurrences(masked, 4)
    end = size
    while end > size - LATEST - 1 and not back[end - 1]:
        end -= 1
    if end == size - LATEST - 1 or end < LEAST or sum(step > 0 for step in back[end - RECENT : end]) < RECENT_OLD:
        return None
    view = _View(masked, classes, values, _counts(classes, size), end, back, again)
    period, covered = _exact_period(view, raw, counting=False)
    # A long run of digits comes nine by nine, and what is left of it at the end is no copy of the numbers before.
    if not period and classes and classes[end - 2 : end] == [NUMBER, NUMBER] and raw[end - 1] != raw[end - 2]:
        view.end = end - 1
        period, covered = _exact_period(view, raw, counting=False)
        view.end = end = end - 1 if period else end
    if period:
        return TOKEN if period == 1 else PERIOD, end - covered, end - covered + period, period, end, 0, 0
    if classes and values and NUMBER in classes:
        period, covered = _exact_period(view, masked, counting=True)
        if period:
            start = end - covered
            numbers = [i for i in range(start + 2 * period, end) if classes[i] == NUMBER]
            wrong = sum(not _predicted(values, i, period, period) for i in numbers)
            if 8 * wrong <= len(numbers):
                slots = _changing_slots(view, period)
                return COUNTER, start, start + period, period, end, wrong, slots
    recent = np.bincount(back[max(0, end - 1024) : end], minlength=3)
    for _ in range(3):
        period = int(recent[2:].argmax()) + 2
        if recent[period] < 8:
            break
        near = _near_copy(view, period)
        if near:
            return near
        recent[period] = 0
    found = _no_progress(view, *TEMPLATE_RULE)
    if found is None and classes:
        view.back, view.again = _recurrences(masked, PARAPHRASE_RULE[1])
        found = _no_progress(view, *PARAPHRASE_RULE)
    return found


@dataclass
class _View:
    """One judged end: ``symbols`` with numbers alike, running ``counts`` of words, numbers and marks, how far ``back``
    the n-gram ending at each place last occurred (0: never) and how often ``again``."""

    symbols: list[int]
    classes: list[int] | None
    values: list[int] | None
    counts: dict[int, NDArray[np.int64]]
    end: int
    back: list[int]
    again: list[int]

    def count(self, kind: int, start: int, end: int) -> int:
        return int(self.counts[kind][end] - self.counts[kind][start])

    def number_at(self, place: int) -> bool:
        return bool(self.classes) and self.classes[place] == NUMBER  # type: ignore[index]


def _counts(classes: list[int] | None, size: int) -> dict[int, NDArray[np.int64]]:
    kinds = np.zeros(size, np.uint8) if classes is None else np.array(classes, np.uint8)
    return {kind: np.concatenate([[0], np.cumsum(kinds == kind)]) for kind in (WORD, NUMBER, MARK, BLANK)}


def _recurrences(symbols: list[int], length: int) -> tuple[list[int], list[int]]:
    back, again = [0] * len(symbols), [0] * len(symbols)
    last: dict[tuple[int, ...], int] = {}
    for place in range(length - 1, len(symbols)):
        gram = tuple(symbols[place - length + 1 : place + 1])
        before = last.get(gram)
        if before is not None:
            back[place], again[place] = place - before, again[before] + 1
        last[gram] = place
    return back, again


def _exact_cover(view: _View, period: int) -> int:
    """Symbols that exact copies must cover. 48 to 60 words keep songs' lines out; nobody writes a paragraph three times
    in a row; equal rows of a table, dividers and the digits of a fraction are longer."""
    words, numbers, marks = (view.count(kind, view.end - period, view.end) for kind in (WORD, NUMBER, MARK))
    if not words:
        if numbers:
            return max(64 if numbers == period else 512, 8 * period)
        return max(192 if marks else 64, 8 * period)
    if 2 * words < period:
        return max(128, (12 if period < 12 else 6 if period < 64 else 4) * period)
    if period == 1:
        return 48
    return max(60, (5 if period < 32 else 4 if period < 64 else 3) * period)


def _counter_copies(view: _View, period: int, slots: int) -> int:
    """Copies in which only numbers go on. Rows that are numbers for the most part, or in which two different numbers
    change, tell something: times tables, counting, tests."""
    words, numbers = (view.count(kind, view.end - period, view.end) for kind in (WORD, NUMBER))
    if not words or 5 * numbers > 2 * period:
        return 200
    if slots > 1:
        return 64 if period < 24 else 24
    copies = 5 if period >= 24 else 8 if period >= 12 else 16
    return 2 * copies if 3 * words < period else copies


def _predicted(values: list[int], place: int, lag: int, older: int) -> bool:
    """The number at ``place`` is the one ``lag`` before, or as far from it as that from the one before."""
    step = values[place] - values[place - lag]
    return step == 0 or (place >= lag + older and step == values[place - lag] - values[place - lag - older])


def _changing_slots(view: _View, period: int) -> int:
    """Distinct values, at most 8, among the numbers of the last copy that differ from the copy before."""
    values = view.values
    assert values is not None
    last = range(max(view.end - period, period), view.end)
    numbers = [i for i in last if view.number_at(i) and view.number_at(i - period)]
    return min(8, len({values[i] for i in numbers if values[i] != values[i - period]}))


def _exact_period(view: _View, symbols: list[int], counting: bool) -> tuple[int, int]:
    """(shortest period that covers enough of the end, symbols it covers), (0, 0) for none."""
    reverse = symbols[: view.end][::-1]
    fail, matched, period, covered = [0] * (view.end + 1), 0, 0, 0
    for length in range(1, view.end + 1):
        if length > 1:
            while matched and reverse[matched] != reverse[length - 1]:
                matched = fail[matched]
            if reverse[matched] == reverse[length - 1]:
                matched += 1
            fail[length] = matched
        shortest = length - matched
        if period:
            if shortest != period:
                break
            covered = length
        elif length >= LEAST and 3 * shortest <= length:
            if counting:
                needed = max(96, shortest * _counter_copies(view, shortest, _changing_slots(view, shortest)))
            else:
                needed = _exact_cover(view, shortest)
            if length >= needed:
                period, covered = shortest, length
    return period, covered


def _structure(view: _View, start: int, end: int) -> bool:
    """Tables, records and code: fewer than half of the symbols are words, or every fifth is a mark. Pieces of names
    under a small vocabulary count as words, so that the words alone would hide a record."""
    return 2 * view.count(WORD, start, end) < end - start or 5 * view.count(MARK, start, end) > end - start


def _near_copy(view: _View, period: int) -> Found | None:
    """Copies at about ``period``. Backwards from the end: a symbol that differs from the copy before counts as an edit
    if it was not in an older copy either; after a symbol put in or left out the distance follows."""
    symbols, back, values, end = view.symbols, view.back, view.values, view.end
    lag, edits, fixed, misses, matches, loose, advanced = period, 0, 0, 0, 0, 0, 0
    best, best_edits, best_misses, best_advanced = 0, 0, 0, 0
    band = period * 3 // 20
    place = end - 1
    while place >= lag and loose <= 24:
        if symbols[place] == symbols[place - lag]:
            if values and view.number_at(place) and values[place] != values[place - lag]:
                advanced += 1
                if not _predicted(values, place, lag, lag):
                    edits, fixed = edits + 1, fixed + 1
            matches += 1
            if matches >= 4:
                loose = 0
                covered = end - place
                # Noise may touch 5 in 32 symbols, news in fixed columns 1 in 32. Where ids do not tell numbers from
                # words, an older copy explains nothing: digits and pieces of names come back by chance.
                most = 5 if 2 * fixed <= edits else 1
                if view.classes:
                    close = 32 * edits <= most * covered and 5 * misses <= covered
                else:
                    close = 10 * max(edits, misses) <= covered
                if close:
                    best, best_edits, best_misses, best_advanced = covered, edits, misses, advanced
        else:
            matches = 0
            misses += 1
            changed = int(back[place] == 0)
            if (
                changed
                and place >= 2 * lag
                and symbols[place - lag] != symbols[place - 2 * lag]
                and not back[place - lag]
            ):
                fixed += 1
            before = symbols[place - 4 : place]
            if place - 4 >= lag and before != symbols[place - 4 - lag : place - lag]:
                for step in range(1, 2 * band + 1):
                    moved = lag + (step + 1) // 2 if step % 2 else lag - step // 2
                    if moved < 1 or abs(moved - period) > band or place - 4 < moved:
                        continue
                    if before == symbols[place - 4 - moved : place - moved]:
                        if changed:
                            changed = max(changed, abs(moved - lag))
                        lag = moved
                        break
            edits += changed
            loose += changed or 1
        place -= 1
    if not best:
        return None
    onset = max(end - best, period)
    start = onset - period
    covered = end - start
    numbers = view.count(NUMBER, start, end)
    needed = max(128, (5 if period < 64 or not view.classes else 4 if period < 200 else 3) * period)
    if _structure(view, start, end):
        needed *= 3
    counts = best_advanced > best_edits
    if counts:
        if 12 * best_misses > covered:
            return None
        needed = max(needed, period * _counter_copies(view, period, _changing_slots(view, period)))
    if covered < needed or 3 * numbers > covered:
        return None
    if 5 * sum(not step for step in back[onset:end]) > (2 if view.classes else 1) * (end - onset):
        return None
    return COUNTER if counts else NEAR_COPY, start, onset, period, end, best_edits, best_advanced


def _number_known(view: _View, place: int) -> bool:
    """The number is one of those, or the next one, that the n-gram's last 8 occurrences ended in."""
    values, back = view.values, view.back
    assert values is not None
    lag = back[place]
    older = back[place - lag]
    if older and _predicted(values, place, lag, older):
        return True
    before = place
    for _ in range(8):
        if not back[before]:
            return False
        before -= back[before]
        if values[before] == values[place]:
            return True
    return False


def _no_progress(view: _View, kind: int, length: int, least: int, share: int) -> Found | None:
    """A stretch up to the end of at least ``least`` symbols in which fewer than ``share`` in a thousand n-grams are
    new."""
    end = view.end
    news = twice = held = held_news = 0
    for size in range(1, end + 1):
        place = end - size
        new = view.back[place] == 0
        if not new and view.number_at(place):
            new = not _number_known(view, place)
        news += new
        twice += view.again[place] >= 2
        if size == least and (1000 * news >= share * size or 20 * twice < 17 * size):
            return None
        if not new and 1000 * news < share * size:
            held, held_news = size, news
        if size > least and 250 * news > share * size:
            break
    if held < least:
        return None
    onset = end - held
    if 5 * view.count(NUMBER, onset, end) > held or (held < 4 * least and _structure(view, onset, end)):
        return None
    returns = sorted(step for step in view.back[onset:end] if step)
    period = returns[(len(returns) - 1) // 2]
    if held < 3 * period:
        return None
    return kind, max(0, onset - period), onset, period, end, held_news, 0
