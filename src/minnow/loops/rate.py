"""A share of cases with the 95% interval it is known to."""

from __future__ import annotations

import math
from dataclasses import dataclass

Z_95 = 1.959963984540054  # 97.5% quantile of the standard normal distribution


@dataclass(frozen=True)
class Rate:
    """``count`` cases out of ``total``.

    The interval is Wilson's score interval (Wilson 1927; Newcombe 1998, method 3, without continuity
    correction): unlike the normal approximation it stays inside [0, 1] and has a width at 0 and at ``total``.
    With ``total`` 0 nothing is known: the rate is given as 0 and the interval as [0, 1].
    """

    count: int
    total: int

    def __post_init__(self) -> None:
        if not 0 <= self.count <= self.total:
            raise ValueError(f"a rate of {self.count} out of {self.total} is not possible; count must be in 0..total")

    @property
    def rate(self) -> float:
        return self.count / self.total if self.total else 0.0

    @property
    def low(self) -> float:
        return self._interval()[0]

    @property
    def high(self) -> float:
        return self._interval()[1]

    def _interval(self) -> tuple[float, float]:
        if not self.total:
            return 0.0, 1.0
        share = self.count / self.total
        z2n = Z_95**2 / self.total
        middle = (share + z2n / 2) / (1 + z2n)
        half = Z_95 * math.sqrt(share * (1 - share) / self.total + z2n / (4 * self.total)) / (1 + z2n)
        # The ends are exact at 0 and at total; rounding there would leave 1e-17 or 0.9999999999999999.
        low = 0.0 if self.count == 0 else middle - half
        high = 1.0 if self.count == self.total else middle + half
        return low, high

    def as_dict(self) -> dict[str, int | float]:
        """The five numbers that result files carry, rounded to six digits."""
        low, high = self._interval()
        return {
            "count": self.count,
            "total": self.total,
            "rate": round(self.rate, 6),
            "low": round(low, 6),
            "high": round(high, 6),
        }
