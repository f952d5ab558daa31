"""Near-duplicates against the definition, by brute force."""

from __future__ import annotations

import random

import pytest

from minnow.data.duplicates import NearCopies, near_duplicates
from minnow.errors import UserError


def jaccard(first: str, second: str) -> float:
    runs = [
        {tuple(words[i : i + 5]) for i in range(max(1, len(words) - 4))}
        for words in (text.casefold().split() for text in (first, second))
    ]
    return len(runs[0] & runs[1]) / len(runs[0] | runs[1])


def test_near_duplicates_are_those_of_the_definition() -> None:
    source = random.Random(0)
    texts: list[str] = []
    for _ in range(60):
        words = [source.choice("abcdefghij") * source.randint(1, 3) for _ in range(source.randint(3, 60))]
        texts.append(" ".join(words))
        for changes in (0, 1, 4):
            other = list(words)
            for _ in range(changes):
                other[source.randrange(len(other))] = "changed"
            texts.append("  ".join(other).upper())
    source.shuffle(texts)
    for overlap in (1.0, 0.8, 0.5):
        kept: list[int] = []
        for i in range(len(texts)):
            if not any(jaccard(texts[i], texts[j]) >= overlap for j in kept):
                kept.append(i)
        wanted = sorted(set(range(len(texts))) - set(kept))
        assert near_duplicates(texts, overlap) == wanted and 50 < len(wanted) < 190


def test_nothing_is_left_out_of_nothing() -> None:
    assert near_duplicates([]) == [] and near_duplicates(["", "one"]) == [] and near_duplicates(["", " "]) == [1]
    with pytest.raises(UserError, match="an overlap of 1.5 tells no near copies"):
        NearCopies(1.5)
