from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from loop_cases import prose

from minnow.loops import RULES, TextLoop, repeated_ngram_share, rule_watch, trl_ngram_penalty, vllm_tail

INTRO = "A short start. "
SENTENCE = "The river runs to the old mill. "  # 32 characters, 8 words and marks
PARAGRAPH = prose(random.Random(1), 60) + " "
WORDS_IN_PARAGRAPH = 60 + PARAGRAPH.count(".")

# Which rules speak of a loop on which text; worked out by hand from the rules' statements.
VECTORS: list[tuple[str, str, set[str]]] = [
    ("prose", prose(random.Random(2), 400), set()),
    ("sentence x3", INTRO + SENTENCE * 3, {"seq-rep-4", "trl-3-gram"}),
    (
        "sentence x4",
        INTRO + SENTENCE * 4,
        {"antidoom", "repeated-sentences", "vllm-1..128-x4", "hiraoka", "seq-rep-4", "trl-3-gram"},
    ),
    ("sentence x4, then prose", SENTENCE * 4 + PARAGRAPH, {"antidoom", "repeated-sentences", "hiraoka"}),
    (
        "sentence x70",
        INTRO + SENTENCE * 70,
        {
            "antidoom",
            "30-gram-x20",
            "period-x-repeats-500",
            "repeated-sentences",
            "vllm-1..128-x4",
            "vllm-16..1024-x4",
            "hiraoka",
            "seq-rep-4",
            "trl-3-gram",
            "8-gram-novelty",
        },
    ),
    (
        "paragraph x4",
        PARAGRAPH * 4,
        {"antidoom", "vllm-1..128-x4", "vllm-16..1024-x4", "seq-rep-4", "trl-3-gram"},
    ),
    (
        "paragraph x21",
        PARAGRAPH * 21,
        {
            "antidoom",
            "30-gram-x20",
            "period-x-repeats-500",
            "vllm-1..128-x4",
            "vllm-16..1024-x4",
            "seq-rep-4",
            "trl-3-gram",
            "8-gram-novelty",
        },
    ),
    ("divider", PARAGRAPH + "-" * 61, {"antidoom", "30-gram-x20", "vllm-1..128-x4", "hiraoka"}),
    ("short divider", PARAGRAPH + "- " * 9 + "\n" + prose(random.Random(3), 60), set()),
    ("paragraph again", PARAGRAPH + "- " * 9 + "\n" + PARAGRAPH, {"trl-3-gram"}),
    ("empty", "", set()),
]


@pytest.mark.parametrize(("text", "speaking"), [v[1:] for v in VECTORS], ids=[v[0] for v in VECTORS])
def test_vectors(text: str, speaking: set[str]) -> None:
    assert {name for name, rule in RULES.items() if rule(text) is not None} == speaking


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1, 7, 64])
def test_streaming_over_the_vectors_equals_offline(name: str, size: int) -> None:
    for _, text, _ in VECTORS:
        if len(text) < 1500 or size == 64:
            watch = rule_watch(name)
            for place in range(0, len(text), size):
                watch.push(text[place : place + size])
            assert watch.finish() == RULES[name](text)


PIECES = st.lists(st.tuples(st.lists(st.integers(0, 3), min_size=1, max_size=7), st.integers(1, 80)), max_size=3)


@settings(deadline=None, derandomize=True, max_examples=30)
@given(PIECES)
def test_streaming_over_tokens_equals_offline(pieces: list[tuple[list[int], int]]) -> None:
    tokens = [token for unit, times in pieces for token in (unit * times)[:300]]
    for name in set(RULES) - {"repeated-sentences"}:
        watch = rule_watch(name)
        for token in tokens:
            watch.push(token)
        assert watch.finish() == RULES[name](tokens) == RULES[name](np.array(tokens, dtype=np.int32)), name


def test_sentences_need_text() -> None:
    with pytest.raises(ValueError, match="give this rule text"):
        RULES["repeated-sentences"]([1, 2, 3])


def test_novelty_recovers() -> None:
    rng = random.Random(5)
    looping = prose(rng, 900) + " " + SENTENCE * 300
    found = RULES["8-gram-novelty"](looping)
    assert found is not None and found.onset_character % 4000 == 0
    assert len(looping) - 300 * len(SENTENCE) <= found.onset_character < len(looping) - 200 * len(SENTENCE)
    assert RULES["8-gram-novelty"](looping + prose(rng, 900)) is None


def test_onsets() -> None:
    text = INTRO + SENTENCE * 70
    second = len(INTRO) + len(SENTENCE)
    assert RULES["antidoom"](text) == TextLoop(
        second - 2, 32, pytest.approx(70 + 2 / 32)
    )  # ". " before it belongs to it
    assert RULES["30-gram-x20"](text) == TextLoop(second - 2, 32, 67.0)
    assert RULES["period-x-repeats-500"](text) == TextLoop(second - 2, 32, pytest.approx(70 + 1 / 8))
    assert RULES["repeated-sentences"](text) == TextLoop(second - 1, 32, 70.0)  # sentences keep their leading space
    assert RULES["vllm-1..128-x4"](text) == TextLoop(second - 2, 32, pytest.approx(70 + 1 / 8))
    assert RULES["vllm-16..1024-x4"](text) == TextLoop(second + 30, 64, pytest.approx(35 + 1 / 16))


@settings(deadline=None, derandomize=True, max_examples=100)
@given(st.text(alphabet="ab c.", max_size=20), st.text(alphabet="ab c.", min_size=1, max_size=9), st.integers(1, 40))
def test_antidoom_equals_its_statement(before: str, unit: str, times: int) -> None:
    text = before + unit * times
    expected = any(
        all(text[place] == text[place + period] for place in range(start, start + max(4 * period, 60) - period))
        for period in range(1, len(text) // 4 + 1)
        for start in range(len(text) - max(4 * period, 60) + 1)
    )
    assert (RULES["antidoom"](text) is not None) == expected


def test_shares() -> None:
    assert repeated_ngram_share("abcdefgh") == 0.0
    assert repeated_ngram_share([7] * 13) == pytest.approx(0.9)  # ten 4-grams, one distinct
    assert repeated_ngram_share("abc") == 0.0
    assert trl_ngram_penalty("abcabc") == pytest.approx(-0.25)  # abc bca cab abc
    assert trl_ngram_penalty("a" * 12, max_penalty=-2.0) == pytest.approx(-1.8)


def test_vllm_sizes_and_count() -> None:
    text = "one two three " * 5
    assert vllm_tail(text, max_pattern_size=2) is None
    assert vllm_tail(text, min_count=6) is None
    assert vllm_tail(text, min_pattern_size=3, max_pattern_size=3, min_count=5) == TextLoop(14, 14, 5.0)
