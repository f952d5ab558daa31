"""Two verdicts on the same things: two models on the same prompts, or two rules on the same answers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from minnow.loops.rate import Rate


@dataclass(frozen=True)
class Paired:
    """The 2×2 table of paired verdicts: how many are loops by both, by the first only, the second only, by neither."""

    both: int
    first: int
    second: int
    neither: int

    def __post_init__(self) -> None:
        if min(self.both, self.first, self.second, self.neither) < 0:
            raise ValueError(f"a table with negative counts is not possible: {self}")

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> Paired:
        """The table of two verdicts on each pair.

        Raises:
            ValueError: lists of different lengths.
        """
        counts = Counter(zip(first, second, strict=True))
        return cls(counts[True, True], counts[True, False], counts[False, True], counts[False, False])

    @property
    def total(self) -> int:
        return self.both + self.first + self.second + self.neither

    @property
    def rates(self) -> tuple[Rate, Rate]:
        """Of the first and of the second."""
        return Rate(self.both + self.first, self.total), Rate(self.both + self.second, self.total)

    @property
    def difference(self) -> float:
        """The second rate less the first; 0 without pairs."""
        return (self.second - self.first) / self.total if self.total else 0.0

    @cached_property
    def p_value(self) -> float:
        """Two-sided exact McNemar test (McNemar 1947): pairs that differ are fair coins if the rates are equal."""
        trials, fewer = self.first + self.second, min(self.first, self.second)
        tail = sum(math.comb(trials, k) for k in range(fewer + 1))
        return min(1.0, 2 * tail / 2**trials)  # integers of any size divide exactly rounded

    @cached_property
    def interval(self) -> tuple[float, float]:
        """95% interval of the difference: Newcombe 1998, "interval estimation for the difference between proportions
        based on paired data", method 10 (from Wilson's intervals of both rates and their correlation); [-1, 1] without
        pairs."""
        if not self.total:
            return -1.0, 1.0
        one, other = self.rates
        spread = math.sqrt(math.prod((one.count, self.total - one.count, other.count, self.total - other.count)))
        apart = self.both * self.neither - self.first * self.second
        # Continuity-corrected where positive.
        phi = (max(apart - self.total / 2, 0) if apart > 0 else apart) / spread if spread else 0.0

        def reach(down: float, up: float) -> float:
            return math.sqrt(max(0.0, down**2 - 2 * phi * down * up + up**2))

        low = self.difference - reach(other.rate - other.low, one.high - one.rate)
        high = self.difference + reach(other.high - other.rate, one.rate - one.low)
        return max(-1.0, low), min(1.0, high)

    @property
    def kappa(self) -> float | None:
        """Cohen's kappa (Cohen 1960): agreement beyond chance, 1 where perfect; None where there is but one verdict."""
        one, other = self.rates
        chance = one.rate * other.rate + (1 - one.rate) * (1 - other.rate)
        if not self.total or one.count == other.count and one.count in (0, self.total):
            return None
        return ((self.both + self.neither) / self.total - chance) / (1 - chance)

    def as_dict(self) -> dict[str, int | float]:
        low, high = self.interval
        return {
            "pairs": self.total,
            "both": self.both,
            "only_first": self.first,
            "only_second": self.second,
            "neither": self.neither,
            "difference": round(self.difference, 6),
            "low": round(low, 6),
            "high": round(high, 6),
            "p_value": float(f"{self.p_value:.6g}"),
        }
