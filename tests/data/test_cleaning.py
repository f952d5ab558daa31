"""Copies, near copies and evaluation texts are found, and nothing else is."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.cleaning import contaminated, copies, strings
from minnow.data.duplicates import words_of
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=60)
VOCABULARY = [f"word{n}" for n in range(2000)]


def drawn(count: int, seed: int) -> list[str]:
    return random.Random(seed).choices(VOCABULARY, k=count)


def test_copies_are_the_same_words() -> None:
    rule = copies()
    texts = ["One, two; THREE.", "one two\nthree", "one two", "three two one", "One -- two: three!"]
    assert [rule(text) for text in texts] == [False, True, False, False, True]


@free
@given(at=st.integers(0, 200), size=st.integers(0, 40), seed=st.integers(0, 99))
def test_a_run_of_words_of_an_evaluation_text_is_found_wherever_it_lies(at: int, size: int, seed: int) -> None:
    evaluation = drawn(40, 1000 + seed)
    rule = contaminated([" ".join(evaluation)], 13)
    text = drawn(200, seed)
    begin = random.Random(seed).randint(0, 40 - size)
    text[at:at] = evaluation[begin : begin + size]
    # The definition: some 13 words in a row are also in a row there.
    runs = {tuple(evaluation[i : i + 13]) for i in range(28)}
    expected = any(tuple(text[i : i + 13]) in runs for i in range(len(text) - 12))
    assert rule(" ".join(text).upper()) == expected == (size >= 13 or expected)


def test_shorter_evaluation_texts_count_whole() -> None:
    rule = contaminated(["what is the capital of France", "how many legs do nine large spiders have"], 13)
    assert rule("Q: How many legs do nine large spiders have? A: 72")
    assert not rule("how many legs do nine large ants have")
    assert not rule("what is the capital of France")  # six words are everywhere
    with pytest.raises(UserError, match="runs of 5 words are everywhere; use at least 8"):
        contaminated(["x"], 5)
    with pytest.raises(UserError, match="no evaluation text has 8 words"):
        contaminated(["too short"], 13)


def test_texts_of_a_row_are_found_at_any_depth() -> None:
    row = {"question": "a", "n": 3, "choices": {"text": ["b", "c"]}, "turns": [{"content": "d"}]}
    assert list(strings(row)) == ["a", "b", "c", "d"]
    assert words_of("It's 3,000 ÄÖ!") == ["it", "s", "3", "000", "äö"]
