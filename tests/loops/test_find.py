from __future__ import annotations

import random
from collections import defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import (
    NEGATIVES,
    Case,
    Vocabulary,
    block,
    labelled_cases,
    prose,
    recovered,
    repeated_then_ended,
)

from minnow.loops import Loop, find_loop
from minnow.loops.find import (
    EXACT_COPIES,
    EXACT_COVERED,
    LONG_COPIES,
    LONG_PERIOD,
    NEAR_COPIES,
    NEAR_COVERED,
    TAIL,
)

CASES = labelled_cases(seed=0, each=12)
PIECES = st.lists(
    st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 60)), min_size=1, max_size=4
)


def repeated(pieces: list[tuple[list[int], int]]) -> list[int]:
    return [token for unit, times in pieces for token in (unit * times)[:400]]


def exact_by_definition(tokens: list[int]) -> tuple[int, int] | None:
    """(start, period) by trying every period, shortest first, one token at a time."""
    for period in range(1, len(tokens) // LONG_COPIES + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        covered = len(tokens) - start
        copies = LONG_COPIES if period >= LONG_PERIOD else EXACT_COPIES
        if covered >= EXACT_COVERED and covered >= copies * period:
            return start, period
    return None


@settings(deadline=None, derandomize=True, max_examples=200)
@given(PIECES)
def test_exact_loops_equal_the_definition(pieces: list[tuple[list[int], int]]) -> None:
    tokens = repeated(pieces)
    expected = exact_by_definition(tokens)
    loop = find_loop(tokens)
    if expected is None:
        assert loop is None or loop.kind in ("near_copy", "template")
        return
    start, period = expected
    kind = "token" if period == 1 else "period"
    assert loop == Loop(kind, start + period, period, (len(tokens) - start) / period, len(tokens))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(PIECES)
def test_every_verdict_is_consistent(pieces: list[tuple[list[int], int]]) -> None:
    tokens = repeated(pieces)
    loop = find_loop(tokens)
    assert loop == find_loop(np.array(tokens, dtype=np.int32))
    assert loop == find_loop([token + 200_000 for token in tokens])  # ids above 16 bits
    if loop is None:
        return
    assert loop.end == len(tokens) and 0 < loop.onset < loop.end and loop.period >= 1
    if loop.kind == "near_copy":
        assert loop.copies >= NEAR_COPIES and loop.copies * loop.period >= NEAR_COVERED
    if loop.kind in ("token", "period", "near_copy"):
        assert loop.onset + loop.copies * loop.period - loop.period == pytest.approx(loop.end)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 31, 32, 60, 100])
def test_certain_exactly_from_the_stated_number_of_copies(period: int) -> None:
    rng = random.Random(period)
    needed = max(EXACT_COVERED, (LONG_COPIES if period >= LONG_PERIOD else EXACT_COPIES) * period)
    tokens = [5, 6, 7, *(block(rng, period) * (needed // period + 1))[:needed]]
    assert find_loop(tokens[:-1]) is None
    kind = "token" if period == 1 else "period"
    assert find_loop(tokens) == Loop(kind, 3 + period, period, needed / period, len(tokens))


def test_a_loop_must_go_on_to_the_last_token() -> None:
    looping = list(range(100, 150)) + [1, 2, 3, 4, 5] * 40
    assert find_loop(looping) is not None
    assert find_loop([*looping, 7]) is None  # it ended by itself: 7 is <|im_end|>
    assert find_loop([*looping, *range(200, 230)]) is None


def test_a_first_copy_is_not_yet_a_loop() -> None:
    answer = list(range(300))
    assert find_loop(answer) is None
    assert find_loop(answer * 2) is None
    assert find_loop(answer * 3) == Loop("period", 300, 300, 3.0, 900)


def test_long_outputs_are_judged_by_their_end_and_counted_from_their_start() -> None:
    rng = random.Random(3)
    prefix = [rng.randint(10, 900) for _ in range(3 * TAIL)]
    loop = find_loop(prefix + block(rng, 40) * 10)
    assert loop == Loop("period", len(prefix) + 40, 40, 10.0, len(prefix) + 400)


def test_near_copies_by_hand() -> None:
    unit = list(range(100, 130))
    copies = []
    for number in range(8):
        changed = list(unit)
        changed[5], changed[20] = 500 + number % 2, 600 + number % 3  # two of thirty tokens
        copies += changed
    loop = find_loop([1, 2, 3, *copies])
    assert loop is not None and (loop.kind, loop.period) == ("near_copy", 30)
    assert abs(loop.onset - 33) <= 2 and loop.copies == pytest.approx(8, abs=0.1)
    for number in range(8):  # nine of thirty: rows of a table
        for place in range(0, 27, 3):
            copies[30 * number + place] = 1000 + 31 * number + place
    assert find_loop([1, 2, 3, *copies]) is None


def test_a_few_items_in_changing_order_are_a_template_and_the_same_stretch_of_new_ones_is_not() -> None:
    rng = random.Random(4)
    items = [[item, item + 1, 9] for item in range(20, 800, 2)]
    intro = [rng.randint(1000, 2000) for _ in range(60)]
    shuffled = intro + [token for _ in range(150) for token in rng.choice(items[:4])]
    loop = find_loop(shuffled)
    assert loop is not None and loop.kind == "template" and loop.end == len(shuffled)
    assert len(intro) < loop.onset < len(intro) + 200
    assert find_loop(intro + [token for item in items[:150] for token in item]) is None


def test_short_and_empty_outputs() -> None:
    assert find_loop([]) is None
    assert find_loop([1] * 47) is None
    assert find_loop([1] * 48) == Loop("token", 1, 1, 48.0, 48)
    with pytest.raises(ValueError, match="shape"):
        find_loop(np.zeros((2, 60), dtype=np.int64))


def by_source(loops: bool) -> dict[str, list[Case]]:
    found = defaultdict(list)
    for case in CASES:
        if bool(case.kind) == loops:
            found[case.source].append(case)
    return found


def test_labelled_loops_are_found() -> None:
    assert len(CASES) >= 400
    for source, cases in by_source(True).items():
        found = sum(find_loop(case.tokens) is not None for case in cases)
        least = 0.75 if source == "near copy, moves" else 0.95
        assert found >= least * len(cases), f"{source}: {found} of {len(cases)}"


def test_labelled_exact_loops_have_the_right_onset() -> None:
    for case in CASES:
        if case.source.startswith("exact"):
            loop = find_loop(case.tokens)
            assert loop is not None and (loop.kind, loop.onset, loop.period) == (case.kind, case.onset, case.period)


def test_near_copies_begin_within_one_period_of_the_truth() -> None:
    errors = []
    for case in CASES:
        loop = find_loop(case.tokens)
        if loop is not None and loop.kind == "near_copy" and case.onset is not None and case.period is not None:
            errors.append((loop.onset - case.onset) / case.period)
    assert len(errors) >= 30
    assert np.mean(np.abs(errors) <= 1) >= 0.8 and min(errors) > -1


def test_no_labelled_negative_is_flagged() -> None:
    flagged = [case.source for case in CASES if not case.kind and find_loop(case.tokens) is not None]
    assert flagged == []


def test_hardly_any_beginning_of_a_negative_is_flagged() -> None:
    """Generation is stopped at the first verdict, so a passing false alarm costs the rest of the answer."""
    rng = random.Random(8)
    flagged = []
    for negative in NEGATIVES:
        if negative not in (recovered, repeated_then_ended):
            for _ in range(5):
                tokens = Vocabulary().encode(negative(rng))
                if any(find_loop(tokens[:end]) is not None for end in range(48, len(tokens) + 1, 8)):
                    flagged.append(negative.__name__)
    assert len(flagged) <= 1, flagged


def test_prose_before_a_loop_does_not_move_its_onset() -> None:
    rng = random.Random(6)
    intro = Vocabulary().encode(prose(rng, 150))
    unit = block(rng, 24)
    loops = [find_loop(intro[:length] + unit * 6) for length in range(0, len(intro), 40)]
    assert [loop and loop.onset for loop in loops] == [length + 24 for length in range(0, len(intro), 40)]
