"""The order of rows: a permutation per epoch, shares that hold at every length, sources that leave in time."""

from __future__ import annotations

import time
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.data.order import Mixture, Permutation
from minnow.errors import UserError

free = settings(deadline=None, derandomize=True, max_examples=100)


@free
@given(size=st.one_of(st.integers(1, 40), st.integers(1, 5000)), key=st.lists(st.integers(0, 2**40), max_size=3))
def test_every_position_is_sent_to_another(size: int, key: list[int]) -> None:
    whole = Permutation(size, *key)(np.arange(size))
    assert sorted(whole.tolist()) == list(range(size))
    chosen = np.random.default_rng(size).integers(0, size, 5)
    assert np.array_equal(Permutation(size, *key)(chosen), whole[chosen])


@pytest.mark.parametrize("size", [2, 3, 5, 7, 12, 30])
def test_all_places_are_equally_likely(size: int) -> None:
    """Chi-square of where each position goes over many keys, and of neighbours staying neighbours."""
    keys = 1200
    sent = np.stack([Permutation(size, key)(np.arange(size)) for key in range(keys)])
    for position in range(size):
        counts = np.bincount(sent[:, position], minlength=size)
        statistic = float(((counts - keys / size) ** 2 / (keys / size)).sum())
        assert statistic < size - 1 + 5 * (2 * (size - 1)) ** 0.5 + 5
    follows = ((sent[:, 1:] - sent[:, :-1]) == 1).mean()
    assert follows == pytest.approx(1 / size, abs=0.04)


def test_the_order_does_not_change_between_releases() -> None:
    assert Permutation(10, 1, 2)(np.arange(10)).tolist() == [9, 8, 7, 0, 2, 5, 3, 1, 6, 4]


def test_the_largest_corpora_need_no_table() -> None:
    size = 10**11
    started = time.process_time()
    order = Permutation(size, 5)
    found = order(np.arange(size - 1000, size))
    assert time.process_time() - started < 0.5
    assert len(set(found.tolist())) == 1000 and found.min() >= 0 and found.max() < size
    assert abs(float(found.mean()) / size - 0.5) < 0.05


weights = st.lists(st.integers(1, 50), min_size=1, max_size=6).map(lambda parts: [part / sum(parts) for part in parts])


@free
@given(shares=weights, begin=st.integers(0, 10**9), count=st.integers(1, 400))
def test_a_mixture_keeps_its_shares_and_gives_each_place_once(shares: list[float], begin: int, count: int) -> None:
    mixture = Mixture(shares, [None] * len(shares))
    sources, places = mixture(np.arange(begin, begin + count))
    before, after = mixture.drawn(begin), mixture.drawn(begin + count)
    for source, share in enumerate(shares):
        assert places[sources == source].tolist() == list(range(before[source], after[source]))
        assert abs(after[source] - share * (begin + count)) <= len(shares) + 1e-6 * (begin + count)
    assert sum(after) == begin + count


@free
@given(shares=weights, data=st.data())
def test_a_source_leaves_once_it_has_given_its_limit(shares: list[float], data: st.DataObject) -> None:
    limits = [data.draw(st.one_of(st.none(), st.integers(1, 60))) for _ in shares]
    mixture = Mixture(shares, limits)
    ends = all(limit is not None for limit in limits)
    assert (mixture.size == sum(limit or 0 for limit in limits)) if ends else mixture.size is None
    slots = mixture.size or 20_000
    sources, places = mixture(np.arange(slots))
    for source, limit in enumerate(limits):
        mine = np.flatnonzero(sources == source)
        assert places[mine].tolist() == list(range(len(mine)))
        if limit is not None and source in mixture.dry:
            assert len(mine) == limit and mixture.dry[source] == mine[-1] + 1
        assert mixture.drawn(slots)[source] == len(mine)
    # Those that stay share the slots of those that left, in proportion.
    staying = [source for source, limit in enumerate(limits) if limit is None]
    if staying:
        last = np.arange(10**6, 10**6 + 10_000)
        counts = np.bincount(mixture(last)[0], minlength=len(shares))
        total = sum(Fraction(shares[source]) for source in staying)
        for source in staying:
            assert abs(counts[source] - float(Fraction(shares[source]) / total) * 10_000) <= 2 * len(shares) + 1


def test_weights_that_do_not_go_together_are_named() -> None:
    with pytest.raises(UserError, match=r"add up to 0\.8, not 1; .* 0\.625, 0\.375"):
        Mixture([0.5, 0.3], [None, None])
    with pytest.raises(UserError, match=r"is -0\.5; every weight is above 0"):
        Mixture([1.5, -0.5], [None, None])
