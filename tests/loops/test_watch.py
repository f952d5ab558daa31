from __future__ import annotations

import random
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import Vocabulary, labelled_cases, prose

from minnow.loops import Loop, LoopWatch, find_loop


def watched(rows: list[list[int]], check_every: int) -> tuple[dict[int, Loop], dict[int, Loop]]:
    """(what the watch reports, what find_loop first says at the same checks) for rows of different lengths."""
    watch = LoopWatch(len(rows), check_every)
    reported: dict[int, Loop] = {}
    expected: dict[int, Loop] = {}
    for step in range(max(len(row) for row in rows)):
        active = np.array([step < len(row) for row in rows])
        new = watch.push(np.array([row[step] if step < len(row) else -1 for row in rows]), active)
        assert not set(new) & set(reported)
        reported |= new
        if (step + 1) % check_every == 0:
            for index, row in enumerate(rows):
                loop = find_loop(row[: step + 1]) if active[index] and index not in expected else None
                if loop is not None:
                    expected[index] = loop
    return reported, expected


def test_equals_find_loop_on_labelled_cases() -> None:
    cases = [case for case in labelled_cases(seed=2, each=3) if len(case.tokens) < 700]
    reported, expected = watched([case.tokens for case in cases], check_every=16)
    assert reported == expected
    assert {loop.kind for loop in reported.values()} == {"token", "period", "near_copy", "template"}


@settings(deadline=None, derandomize=True, max_examples=40)
@given(
    st.lists(
        st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 30)), max_size=4),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 9),
    st.sampled_from([0, 65_000, 150_000]),
)
def test_equals_find_loop_on_any_rows(pieces: list, check_every: int, offset: int) -> None:
    rows = [[offset + token for unit, times in row for token in unit * times] or [offset] for row in pieces]
    reported, expected = watched(rows, check_every)
    assert reported == expected


def test_a_reset_row_starts_anew_and_idle_rows_keep_their_place() -> None:
    watch = LoopWatch(2, check_every=1)
    everyone, first = np.array([True, True]), np.array([True, False])
    found = [watch.push(np.array([4, step]), everyone) for step in range(48)]
    assert found[:-1] == [{}] * 47 and found[-1] == {0: Loop("token", 1, 1, 48.0, 48)}
    assert watch.push(np.array([4, 48]), everyone) == {}
    watch.reset(0)
    found = [watch.push(np.array([9, 0]), first) for _ in range(48)]
    assert found[:-1] == [{}] * 47 and found[-1] == {0: Loop("token", 1, 1, 48.0, 48)}
    found = [watch.push(np.array([0, 7]), ~first) for _ in range(48)]
    assert found[-1] == {1: Loop("token", 50, 1, 48.0, 97)}


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        LoopWatch(0)
    with pytest.raises(ValueError, match="one push"):
        LoopWatch(4, check_every=0)


def test_five_hundred_rows_cost_little() -> None:
    rng = random.Random(0)
    different = np.array([Vocabulary().encode(prose(rng, 400))[:512] for _ in range(50)])
    rows = np.tile(different, (10, 1))
    for row in range(25):
        rows[row, 300:] = np.resize(rows[row, 100:120], 212)
    watch = LoopWatch(500)
    active = np.ones(500, dtype=bool)
    begun = time.process_time()
    found = [row for step in range(512) for row in watch.push(rows[:, step], active)]
    seconds = time.process_time() - begun
    assert sorted(found) == list(range(25))
    assert seconds < 1.5
