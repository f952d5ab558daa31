"""McNemar's exact test against every outcome counted, and the interval of the difference by how often it covers."""

from __future__ import annotations

import math
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.loops import Paired, Rate


@pytest.mark.parametrize("trials", range(9))
def test_mcnemar_is_the_share_of_coin_tosses_at_least_as_one_sided(trials: int) -> None:
    tosses = [sum(outcome) for outcome in product((0, 1), repeat=trials)]
    for first in range(trials + 1):
        odd = [heads for heads in tosses if abs(2 * heads - trials) >= abs(2 * first - trials)]
        wanted = Fraction(len(odd), len(tosses))
        assert Paired(3, first, trials - first, 5).p_value == float(wanted)


def test_mcnemar_by_hand_and_for_thousands_of_pairs() -> None:
    assert Paired(0, 10, 0, 90).p_value == 2 / 1024
    assert Paired(9, 0, 0, 1).p_value == 1.0
    assert 0 < Paired(0, 900, 2100, 7000).p_value < 1e-100
    assert 0.9 < Paired(0, 5000, 5010, 0).p_value <= 1.0


def test_a_table_of_verdicts() -> None:
    found = Paired.of([True, True, False, False, False], [True, False, True, False, True])
    assert found == Paired(1, 1, 2, 1) and found.total == 5
    assert found.rates == (Rate(2, 5), Rate(3, 5)) and found.difference == pytest.approx(0.2)
    with pytest.raises(ValueError):
        Paired.of([True], [])
    with pytest.raises(ValueError, match="negative"):
        Paired(1, -1, 0, 0)
    assert Paired(0, 0, 0, 0).interval == (-1.0, 1.0) and Paired(0, 0, 0, 0).p_value == 1.0


@pytest.mark.parametrize(
    "shares", [(0.1, 0.2, 0.1, 0.6), (0.0, 0.3, 0.05, 0.65), (0.3, 0.05, 0.05, 0.6), (0.02, 0.02, 0.06, 0.9)]
)
def test_the_interval_covers_the_true_difference(shares: tuple[float, ...]) -> None:
    """Summed over every table of 24 pairs by its multinomial probability; a wrong correlation or sign falls far below."""
    n, truth, covered, width = 24, shares[2] - shares[1], 0.0, 0.0
    for both in range(n + 1):
        for first in range(n + 1 - both):
            for second in range(n + 1 - both - first):
                counts = both, first, second, n - both - first - second
                chance = math.factorial(n) * math.prod(
                    p**k / math.factorial(k) for p, k in zip(shares, counts, strict=True)
                )
                low, high = Paired(*counts).interval
                covered += chance * (low <= truth <= high)
                width += chance * (high - low)
    assert covered >= 0.94
    discordant = shares[1] + shares[2]
    assert width < 1.9 * 2 * 1.96 * math.sqrt(discordant / n), "an interval of everything covers too"


@settings(deadline=None, derandomize=True)
@given(*[st.integers(0, 200)] * 4)
def test_turned_round_everything_turns_round(both: int, first: int, second: int, neither: int) -> None:
    one, other = Paired(both, first, second, neither), Paired(both, second, first, neither)
    assert one.p_value == other.p_value and one.difference == -other.difference
    assert one.interval == pytest.approx(tuple(-end for end in reversed(other.interval)))
    low, high = one.interval
    assert -1 <= low <= one.difference <= high <= 1
    assert one.as_dict()["pairs"] == both + first + second + neither


@pytest.mark.parametrize("length", [1, 4, 6])
def test_kappa_is_cohens(length: int) -> None:
    """Against (observed - expected) / (1 - expected), spelled out over the answers."""
    for first in product([False, True], repeat=length):
        second = [bool((7 * i + sum(first)) % 3) for i in range(length)]
        table = Paired.of(first, second)
        observed = sum(a == b for a, b in zip(first, second, strict=True)) / length
        expected = sum(a == b for a in first for b in second) / length**2
        if expected == 1:
            assert table.kappa is None
        else:
            assert table.kappa == pytest.approx((observed - expected) / (1 - expected))
