from __future__ import annotations

import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import NEGATIVES, Vocabulary, labelled_cases, prose, recovered, repeated_then_ended

from minnow.loops import Lexicon, Loop, LoopWatch, TextWatch, find_loop, find_text_loop, has_lasted, native
from minnow.loops.judge import TAIL
from minnow.native import Loaded

ROWS = st.lists(
    st.lists(st.tuples(st.lists(st.integers(0, 5), min_size=1, max_size=12), st.integers(1, 30)), max_size=4),
    min_size=1,
    max_size=4,
)


@pytest.fixture
def python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "load", lambda: Loaded(None, "Python"))


def watched(rows: list[list[int]], check_every: int, lexicon: Lexicon | None = None) -> dict[int, tuple[int, Loop]]:
    """(length at the report, loop) by row; rows come one token a push and end at different times."""
    watch = LoopWatch(len(rows), check_every, lexicon)
    reported: dict[int, tuple[int, Loop]] = {}
    for step in range(max(len(row) for row in rows)):
        active = np.array([step < len(row) for row in rows])
        new = watch.push(np.array([row[step] if step < len(row) else -1 for row in rows]), active)
        assert not set(new) & set(reported)
        reported |= {row: (step + 1, loop) for row, loop in new.items()}
    return reported


def test_reports_are_find_loops_and_come_soon() -> None:
    cases = [case for case in labelled_cases(seed=2, each=3) if len(case.tokens) < 700]
    reported = watched([case.tokens for case in cases], check_every=8)
    assert {loop.kind for _, loop in reported.values()} == {"token", "period", "near_copy", "template"}
    for index, case in enumerate(cases):
        found = [n for n in range(48, len(case.tokens) + 1, 8) if find_loop(case.tokens[:n]) is not None]
        if index in reported:
            length, loop = reported[index]
            assert loop == find_loop(case.tokens[:length])
            assert length <= found[0] + max(8, found[0] // 32) + 8
        else:
            assert not found or len(case.tokens) - found[0] <= max(8, len(case.tokens) // 32) + 8


@settings(deadline=None, derandomize=True, max_examples=40)
@given(ROWS, st.integers(1, 9), st.sampled_from([0, 65_000, 150_000]))
def test_reports_on_any_rows_are_find_loops(pieces: list, check_every: int, offset: int) -> None:
    rows = [[offset + token for unit, times in row for token in unit * times] or [offset] for row in pieces]
    for row, (length, loop) in watched(rows, check_every).items():
        assert loop == find_loop(rows[row][:length]) and length % check_every == 0


def some_rows() -> Iterator[list[int]]:
    rng = random.Random(3)
    for case in labelled_cases(seed=3, each=1):
        yield case.tokens[:900]
    for period in (1, 6, 40):
        yield [rng.randint(0, 60) for _ in range(200)] + [rng.randint(0, 60) for _ in range(period)] * (300 // period)


def test_python_reports_what_c_reports(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = list(some_rows())
    lexicon = Lexicon(["", *("a" if i % 7 else str(i % 10) if i % 3 else "--" for i in range(2000))])
    in_c = watched(rows, 8), watched(rows, 8, lexicon)
    monkeypatch.setattr(native, "load", lambda: Loaded(None, "Python"))
    assert (watched(rows, 8), watched(rows, 8, lexicon)) == in_c


def reset_and_idle() -> None:
    watch = LoopWatch(2, check_every=1)
    everyone, first = np.array([True, True]), np.array([True, False])
    found = [watch.push(np.array([4, step]), everyone) for step in range(48)]
    assert found[:-1] == [{}] * 47 and found[-1] == {0: Loop("token", 1, 1, 48.0, 48)}
    assert watch.push(np.array([4, 48]), everyone) == {}
    watch.reset(0)
    found = [watch.push(np.array([9, 0]), first) for _ in range(48)]
    assert found[:-1] == [{}] * 47 and found[-1] == {0: Loop("token", 1, 1, 48.0, 48)}
    found = [watch.push(np.array([0, 7]), ~first) for _ in range(60)]
    (loop,) = [each[1] for each in found if each]
    assert (loop.kind, loop.onset, loop.period) == ("token", 50, 1)


def test_a_reset_row_starts_anew_and_idle_rows_keep_their_place() -> None:
    reset_and_idle()


@pytest.mark.usefixtures("python")
def test_a_reset_row_starts_anew_in_python() -> None:
    reset_and_idle()


def test_a_loop_has_lasted_when_it_is_long_and_half_of_the_output() -> None:
    def loop(kind: str, onset: int, end: int) -> Loop:
        return Loop(kind, onset, 10, 8.0, end)

    assert has_lasted(loop("template", 900, 901), 0)
    assert [has_lasted(loop("template", 100, end), 500) for end in (599, 600)] == [False, True]
    assert [has_lasted(loop("period", 100, end), 500) for end in (299, 300)] == [False, True]
    assert [has_lasted(loop("period", 600, end), 500) for end in (1199, 1200)] == [False, True]


def lasting() -> None:
    """A loop is reported when it has lasted; one that is left before is not, nor one that the text does not show."""
    rng = random.Random(4)
    plain = [rng.randint(100, 900) for _ in range(60)]
    loop, passing = [1, 2, 3, 4, 5, 6, 7] * 40, [1, 2, 3, 4, 5, 6, 7] * 12
    near = [token if i % 45 else rng.randint(1000, 2000) for i, token in enumerate(list(range(20, 42)) * 16)]
    rows = [plain + loop, plain + passing + plain, plain + near, plain + near]
    asked: list[int] = []

    def text(row: int) -> str:
        asked.append(row)
        return "round and round " * 60 if row == 2 else "from here to there"

    watch = LoopWatch(4, lexicon=None, persistence=200, text=text)
    found: dict[int, tuple[int, Loop]] = {}
    for step in range(max(map(len, rows))):
        active = np.array([step < len(row) for row in rows])
        tokens = np.array([row[step] if step < len(row) else 0 for row in rows])
        found |= {row: (step + 1, loop) for row, loop in watch.push(tokens, active).items()}
    assert set(found) == {0, 2} and found[0][1].kind == "period" and found[2][1].kind == "near_copy"
    assert 60 + 7 + 80 <= found[0][0] < 60 + 7 + 100 and found[2][1].end - found[2][1].onset >= 200
    assert set(asked) == {2, 3}, "exact copies need no text"


def test_a_persistent_watch_waits_for_loops_that_last() -> None:
    lasting()


@pytest.mark.usefixtures("python")
def test_a_persistent_watch_waits_in_python() -> None:
    lasting()


def begun_again() -> None:
    watch, first = LoopWatch(2), np.array([True, False])
    for _ in range(3):
        watch.reset(0, [7, 8, 9] * 30)
        for step in range(8):
            assert watch.push(np.array([50 + step, 0]), first) == {}, "what the row was given is not reported"
    watch.reset(0, [7, 8, 9] * 10)
    found = [watch.push(np.array([token, 0]), first) for token in [7, 8, 9] * 20]
    (loop,) = [each[0] for each in found if each]
    assert (loop.onset, loop.period) == (3, 3), "what the row was given counts as its output"


def test_a_row_may_begin_with_tokens() -> None:
    begun_again()


@pytest.mark.usefixtures("python")
def test_a_row_may_begin_with_tokens_in_python() -> None:
    begun_again()


def test_long_rows_are_watched_in_bounded_memory() -> None:
    rng = np.random.default_rng(0)
    fresh = rng.integers(10, 2**31 - 1, 70_000)
    row = [*fresh.tolist(), *([1, 2, 3, 4, 5, 6, 7] * 100)]
    ((length, loop),) = watched([row], 8).values()
    assert (loop.kind, loop.onset, loop.period) == ("period", 70_007, 7) and length <= 70_000 + 60 + TAIL // 32 + 8


def test_bad_sizes() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        LoopWatch(0)
    with pytest.raises(ValueError, match="one push"):
        LoopWatch(4, check_every=0)


def test_hardly_any_clean_row_is_cut() -> None:
    """Generation stops at the first report, so a passing false alarm costs the rest of the answer."""
    rng = random.Random(8)
    rows = [
        Vocabulary().encode(negative(rng))
        for negative in NEGATIVES
        if negative not in (recovered, repeated_then_ended)
        for _ in range(8)
    ]
    assert len(rows) > 150 and len(watched(rows, 8)) <= 1


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
    assert seconds < 0.5


@settings(deadline=None, derandomize=True, max_examples=60)
@given(st.integers(0, 10**6), st.integers(1, 200), st.booleans())
def test_a_text_in_pieces_gets_the_verdict_of_the_whole(seed: int, size: int, loops: bool) -> None:
    rng = random.Random(seed)
    text = prose(rng, rng.randint(0, 80)) + "\n"
    if loops:
        unit = rng.choice(
            [prose(rng, 8) + " ", "----", "Step {}: the same again, with the old stone. ", "7", "河上的桥"]
        )
        text += "".join(unit.format(i) for i in range(rng.randint(3, 120)))
    watch = TextWatch(check_every=16)
    reports = [watch.push(text[place : place + size]) for place in range(0, len(text), size)]
    assert watch.finish() == find_text_loop(text)
    assert sum(report is not None for report in reports) <= 1


def test_a_text_may_go_on_and_has_to_last() -> None:
    start, round_ = "It was a fine day. ", "the old wheel turns and "
    reported = {}
    for persistence in (0, 2500):
        watch = TextWatch(16, persistence, start + round_ * 30)
        found = [watch.push(round_) for _ in range(120)]
        (place,) = [place for place, loop in enumerate(found) if loop is not None]
        assert found[place].onset == len(start + round_)  # type: ignore[union-attr]
        reported[persistence] = place
    assert reported[0] == 0 and 1000 <= len(round_) * (29 + reported[2500] + 1) < 1100 + len(round_)
