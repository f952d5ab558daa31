"""Sequences that are read together: all of them, once, within the limit and with little padding."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from minnow.rollout.batching import MOST_POSITIONS, batches


@given(st.lists(st.integers(0, 3000), max_size=200))
def test_every_place_comes_once_and_batches_are_full_of_tokens(lengths: list[int]) -> None:
    made = list(batches(lengths))
    places = [place for batch in made for place in batch]
    assert sorted(places) == list(range(len(lengths)))
    assert [lengths[place] for place in places] == sorted(lengths, reverse=True)
    for batch in made:
        read = len(batch) * lengths[batch[0]]
        assert len(batch) == 1 or read <= MOST_POSITIONS
        assert read - sum(lengths[place] for place in batch) <= max(768, 0.125 * read)
