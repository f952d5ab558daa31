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

from minnow.loops import Lexicon, Loop, find_loop, find_loops, find_text_loop, find_text_loops
from minnow.loops.find import as_loop
from minnow.loops.judge import TAIL, judge_many
from minnow.loops.symbols import read_text

CASES = labelled_cases(seed=0, each=12)
PIECES = st.lists(
    st.tuples(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.integers(1, 60)), min_size=1, max_size=4
)


def repeated(pieces: list[tuple[list[int], int]]) -> list[int]:
    return [token for unit, times in pieces for token in (unit * times)[:400]]


def needed(period: int) -> int:
    """Tokens that exact copies of a block of words must cover."""
    return 48 if period == 1 else max(60, (5 if period < 32 else 4 if period < 64 else 3) * period)


def exact_by_definition(tokens: list[int]) -> tuple[int, int] | None:
    """(start, period) by trying every period, shortest first, one token at a time."""
    for period in range(1, len(tokens) // 3 + 1):
        start = len(tokens) - period
        while start > 0 and tokens[start - 1] == tokens[start - 1 + period]:
            start -= 1
        if len(tokens) - start >= needed(period):
            return start, period
    return None


def said(loop: Loop | None) -> tuple[str, int, int, float, int] | None:
    """A verdict without its confidence."""
    return loop and (loop.kind, loop.onset, loop.period, loop.copies, loop.end)


@settings(deadline=None, derandomize=True, max_examples=200)
@given(PIECES)
def test_exact_loops_equal_the_definition(pieces: list[tuple[list[int], int]]) -> None:
    tokens = repeated(pieces)
    expected = exact_by_definition(tokens)
    loop = find_loop(tokens)
    if expected is None:
        assert loop is None or loop.kind in ("near_copy", "template") or loop.end < len(tokens)
        return
    start, period = expected
    kind = "token" if period == 1 else "period"
    assert said(loop) == (kind, start + period, period, (len(tokens) - start) / period, len(tokens))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(PIECES)
def test_every_verdict_is_consistent(pieces: list[tuple[list[int], int]]) -> None:
    tokens = repeated(pieces)
    loop = find_loop(tokens)
    assert loop == find_loop(np.array(tokens, dtype=np.int32))
    assert loop == find_loop([token + 200_000 for token in tokens])  # ids above 16 bits
    if loop is None:
        return
    assert len(tokens) - 8 <= loop.end <= len(tokens) and 0 < loop.onset < loop.end and loop.period >= 1
    assert 0 < loop.confidence <= 1 and 0 < loop.wasted < 1
    if loop.kind == "near_copy":
        assert loop.copies >= 3 and loop.copies * loop.period >= 128
    if loop.kind in ("token", "period", "near_copy"):
        assert loop.onset + loop.copies * loop.period - loop.period == pytest.approx(loop.end)


@pytest.mark.parametrize("period", [1, 2, 3, 7, 16, 31, 32, 60, 100])
def test_certain_exactly_from_the_stated_number_of_copies(period: int) -> None:
    rng = random.Random(period)
    size = needed(period)
    tokens = [5, 6, 7, *(block(rng, period) * (size // period + 1))[:size]]
    assert find_loop(tokens[:-1]) is None
    kind = "token" if period == 1 else "period"
    assert said(find_loop(tokens)) == (kind, 3 + period, period, size / period, len(tokens))


def test_a_loop_must_go_on_to_the_last_token() -> None:
    looping = list(range(100, 150)) + [1, 2, 3, 4, 5] * 40
    assert find_loop(looping) is not None
    assert find_loop([*looping, 7]) is None  # it ended by itself: 7 is <|im_end|>
    assert find_loop([*looping, *range(200, 230)]) is None


def test_a_first_copy_is_not_yet_a_loop() -> None:
    answer = list(range(300))
    assert find_loop(answer) is None
    assert find_loop(answer * 2) is None
    assert find_loop(answer * 3) == Loop("period", 300, 300, 3.0, 900, 0.75)


def test_long_outputs_are_judged_by_their_end_and_counted_from_their_start() -> None:
    rng = random.Random(3)
    prefix = [rng.randint(10, 900) for _ in range(3 * TAIL)]
    unit = block(rng, 40)
    assert said(find_loop(prefix + unit * 10)) == ("period", len(prefix) + 40, 40, 10.0, len(prefix) + 400)
    longest = prefix + unit * (TAIL // 16)  # two and a half times what is judged at once
    assert said(find_loop(longest)) == ("period", len(prefix) + 40, 40, TAIL / 16, len(longest))
    assert said(find_loop(prefix + block(rng, 2000) * 4)) == (
        "period", len(prefix) + 2000, 2000, 4.0, len(prefix) + 8000,
    )  # fmt: skip


@settings(max_examples=12, deadline=None)
@given(st.integers(0, 1 << 32), st.sampled_from(["none", "short", "long", "counter"]), st.booleans())
def test_reading_only_the_end_of_a_long_text_changes_no_verdict(seed: int, kind: str, lines: bool) -> None:
    rng = random.Random(seed)
    words = ["".join(rng.choices("abcdefghij", k=rng.randint(2, 30))) for _ in range(400)] + [
        ".",
        ",\n" if lines else ",",
        "7",
    ]
    opening = " ".join(rng.choices(words, k=rng.randint(15_000, 22_000)))
    loop = {
        "none": "",
        "short": " and so it goes on" * 60,
        "long": (" " + " ".join(rng.choices(words, k=1500))) * rng.choice([4, 14]),
        "counter": "".join(f" This is line number {n} of the text." for n in range(60)),
    }[kind]
    text = opening + loop
    symbols = read_text(text)
    found = judge_many(symbols.raw, symbols.classes, symbols.values, np.array([0, len(symbols)]), False)[0]
    expected = as_loop(found, symbols, 0) if found["kind"] else None
    assert find_text_loop(text) == expected
    assert (expected is None) == (kind == "none")


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
    assert find_loop([1] * 48) == Loop("token", 1, 1, 48.0, 48, 1.0)
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


# --- text, and tokens with a lexicon ---

ROW = "Step {}: I look at the next stone of the old bridge and count it, then I go on to {}. "


def test_kinds_in_text() -> None:
    rng = random.Random(9)
    intro = prose(rng, 60) + "\n"
    sentences = [prose(rng, 9) for _ in range(4)]
    counter = find_text_loop(intro + "".join(ROW.format(i, i + 1) for i in range(7, 40)))
    assert counter is not None and counter.kind == "counter"
    assert counter.onset == pytest.approx(len(intro) + len(ROW.format(7, 8)), abs=4)
    shuffled = find_text_loop(intro + " ".join(rng.choice(sentences) for _ in range(60)))
    assert shuffled is not None and shuffled.kind in ("template", "paraphrase")
    decayed = find_text_loop("".join(f"{i}. {name}\n" for i, name in enumerate(["Vega", "Mira"] + ["Rigel"] * 40)))
    assert decayed is not None and decayed.kind == "counter" and decayed.onset == 24  # after the first "Rigel"
    assert find_text_loop(intro + "word " * 60).kind == "token"  # type: ignore[union-attr]


def test_numbers_that_say_something_are_no_loop() -> None:
    rng = random.Random(10)
    rows = "".join(f"Step {i}: the weight is {rng.randint(10, 9999)} and we go on to the next.\n" for i in range(90))
    assert find_text_loop(rows) is None
    assert find_text_loop("".join(f"{i} times 7 is {7 * i}\n" for i in range(1, 31))) is None
    assert find_text_loop("1 / 7 = 0." + "142857" * 30) is None
    assert find_text_loop("A googol is 1" + "0" * 100) is None
    assert find_text_loop(prose(rng, 30) + "\n" + "-" * 120) is None
    assert find_text_loop(prose(rng, 30) + "\n" + "-" * 400).kind == "token"  # type: ignore[union-attr]


def test_the_text_of_a_poem_with_a_chorus_is_clean_at_every_length() -> None:
    rng = random.Random(11)
    chorus = "\n".join(prose(rng, 7) for _ in range(4)) + "\n\n"
    song = "".join(prose(rng, 40) + "\n\n" + chorus for _ in range(6))
    assert not any(find_text_loops([song[:end] for end in range(100, len(song), 37)], threads=1))


def test_a_lexicon_tells_numbers_from_words() -> None:
    pieces = [
        "",
        " step",
        " of",
        " the",
        " bridge",
        ":",
        " ",
        "\n",
        *map(str, range(10)),
        " stone",
        " count",
        " go",
        " on",
    ]
    lexicon = Lexicon(pieces)
    row = [1, 5, 6, 0, 3, 18, 2, 3, 4, 19, 20, 21, 7]

    def counting(step: int) -> list[int]:
        out = []
        for i in range(100, 100 + 30 * step, step):
            out += [*row[:3], *(8 + int(digit) for digit in str(i)), *row[4:]]
        return out

    loop = find_loop(counting(1), lexicon)
    assert loop is not None and (loop.kind, loop.onset) == ("counter", 15)
    digits = [8 + int(digit) for digit in "142857" * 20]
    assert find_loop(digits) is not None and find_loop(digits, lexicon) is None


@pytest.mark.parametrize("length", range(1000, 1009))
@pytest.mark.parametrize("unit", ["7", "0", "142857"])
def test_a_digit_that_never_stops_is_a_loop_wherever_it_is_cut(unit: str, length: int) -> None:
    text = "The answer is 0." + (unit * length)[:length]
    loop = find_text_loop(text)
    assert loop is not None and loop.kind in ("token", "period") and len("The answer is 0.") <= loop.onset < 60
    lexicon = Lexicon([*"abcdefgh", *"0123456789"])
    loop = find_loop([0, 1, 2, 3, *(8 + int(digit) for digit in text[16:])], lexicon)
    assert loop is not None and loop.kind in ("token", "period") and loop.onset < 40


def test_digits_without_a_pattern_are_none() -> None:
    rng = random.Random(1)
    for length in range(900, 909):
        assert find_text_loop("3." + "".join(rng.choices("0123456789", k=length))) is None


def test_many_at_once_and_in_threads() -> None:
    cases = labelled_cases(seed=5, each=2)
    rows = [case.tokens for case in cases] * 2
    one = [find_loop(row) for row in rows]
    assert find_loops(rows, threads=1) == find_loops(rows, threads=3) == one
    texts = [case.text for case in cases if case.text]
    assert find_text_loops(texts, threads=2) == [find_text_loop(text) for text in texts]
    assert find_loops([]) == [] and find_loops([[], [1]]) == [None, None]
    assert find_text_loop("") is None and find_text_loop("word") is None


# --- what holds for any output ---

FRESH = st.integers(10_000, 2_000_000)


@settings(deadline=None, derandomize=True, max_examples=60)
@given(PIECES, st.lists(FRESH, min_size=1, max_size=30, unique=True))
def test_fresh_text_never_raises_confidence(pieces: list[tuple[list[int], int]], fresh: list[int]) -> None:
    words = repeated(pieces)
    text = " ".join(f"w{'abcdefg'[token]}" for token in words)
    before = 1.0
    for count in range(len(fresh) + 1):
        added = " ".join("f" + "".join(chr(97 + int(d)) for d in str(token)) for token in fresh[:count])
        loop = find_text_loop(text + " " + added)
        now = 0.0 if loop is None else loop.confidence
        assert now <= before or count == 0
        before = now
        if count:
            assert find_loop(words + fresh[:count]) is None


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.lists(st.integers(0, 9), max_size=900), st.booleans())
def test_what_repeats_no_four_symbols_is_clean(draws: list[int], in_text: bool) -> None:
    tokens: list[int] = []
    seen: set[tuple[int, ...]] = set()
    for draw in draws:
        gram = (*tokens[-3:], draw)
        if len(gram) < 4 or gram not in seen:
            tokens.append(draw)
            seen.add(gram)
    assert (find_text_loop(" ".join("abcdefghij"[t] for t in tokens)) if in_text else find_loop(tokens)) is None


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.integers(0, 10**6), st.integers(0, 300), st.integers(1, 60))
def test_the_onset_moves_with_the_prefix(seed: int, size: int, period: int) -> None:
    rng = random.Random(seed)
    unit = block(rng, period)
    loop = unit * (max(70, 6 * period) // period)
    prefix = [rng.randint(10, 900) for _ in range(size)]
    alone, after = find_loop(loop), find_loop(prefix + loop)
    assert alone is not None and after is not None
    assert (after.onset, after.period) == (alone.onset + size, alone.period)
