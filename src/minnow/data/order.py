"""Which row comes when: pure functions of a key and a position, in constant time and memory for any corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isqrt

import numpy as np
from numpy.typing import NDArray

from minnow.errors import UserError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
"""What SplitMix64 adds before each of its outputs."""

_ROUNDS = 8
_SHARES = 1 << 20  # weights are counted in parts of so many


def splitmix(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """SplitMix64's output function (Steele et al. 2014); its high half is the better one."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    return splitmix(values) >> np.uint64(32)


def chances(places: NDArray[np.int64], *key: int) -> NDArray[np.float64]:
    """A number from 0 to 1 (exclusive) for each place, the same whenever it is asked for with this key."""
    first = np.random.SeedSequence(key).generate_state(1, np.uint64)
    return _mixed(places.astype(np.uint64) * GOLDEN + first) / float(1 << 32)


class Permutation:
    """A keyed permutation of ``range(size)`` whose value at any position is found alone.

    A Feistel network over pairs below ``a`` and ``b`` with ``a b >= size`` and both near its root; what it sends beyond
    ``size`` is sent through again until it falls inside (cycle walking; Black & Rogaway 2002). Two sizes or keys
    (whole numbers from 0) give unrelated orders.
    """

    def __init__(self, size: int, *key: int) -> None:
        self.size = size
        self._a = np.uint64(isqrt(max(0, size - 1)) + 1)
        self._b = np.uint64(-(-size // int(self._a)))
        self._keys = np.random.SeedSequence([size, *key]).generate_state(_ROUNDS, np.uint64)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where ``positions``, each in ``range(size)``, are sent; int64 of the same shape."""
        values = self._network(positions.astype(np.uint64))
        while (outside := values >= self.size).any():
            values[outside] = self._network(values[outside])
        return values.astype(np.int64)

    def _network(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left, right = values // self._b, values % self._b
        for first, second in self._keys.reshape(-1, 2):
            left = (left + _mixed(right + first)) % self._a
            right = (right + _mixed(left + second)) % self._b
        return left * self._b + right


def check_weights(weights: Sequence[float]) -> None:
    """Raise UserError where a weight is not above 0, or they do not add up to 1."""
    if min(weights) <= 0:
        raise UserError(f"a weight of the mixture is {min(weights):g}; every weight is above 0, or the source left out")
    if abs(sum(weights) - 1) > 1e-6:
        scaled = ", ".join(f"{weight / sum(weights):.4g}" for weight in weights)
        raise UserError(
            f"the mixture's weights add up to {sum(weights):.6g}, not 1; in the same proportion they are {scaled}"
        )


@dataclass(frozen=True)
class _Phase:
    """A stretch of slots over which the shares do not change.

    Attributes:
        begin: its first slot.
        shares: of each source, whole numbers.
        drawn: from each source before ``begin``.
    """

    begin: int
    shares: tuple[int, ...]
    drawn: tuple[int, ...]


class Mixture:
    """From a slot (a row's place in training) to a source and a place in it; each source's places come in order.

    Among the first ``n`` slots a source has its share of ``n`` to within the number of sources, at every ``n``. A source
    that has given its limit leaves, and the others share its slots in proportion.

    Args:
        weights: shares above 0 that add up to 1.
        limits: the most slots of each source; None for no limit.

    Raises:
        UserError: a weight is not above 0, or they do not add up to 1.
    """

    def __init__(self, weights: Sequence[float], limits: Sequence[int | None]) -> None:
        check_weights(weights)
        self.size: int | None = None
        """Slots until every source has given its limit; None without an end."""
        self.dry: dict[int, int] = {}
        """The slot from which on a source, having given its limit, is missing."""
        shares = tuple(max(1, round(weight * _SHARES)) for weight in weights)
        self._phases = [_Phase(0, shares, (0,) * len(shares))]
        while self.size is None:
            phase = self._phases[-1]
            ends = [_end(phase, source, limit) for source, limit in enumerate(limits) if limit is not None]
            left = [end for end in ends if end is not None]
            if not left:
                break
            end = min(left)
            drawn = tuple(
                before + n for before, n in zip(phase.drawn, _drawn(phase.shares, end - phase.begin), strict=True)
            )
            shares = tuple(
                0 if limit is not None and n >= limit else share
                for share, limit, n in zip(phase.shares, limits, drawn, strict=True)
            )
            self.dry |= {source: end for source, share in enumerate(shares) if phase.shares[source] and not share}
            if any(shares):
                self._phases.append(_Phase(end, shares, drawn))
            else:
                self.size = end

    def __call__(self, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The source of each slot and the place in it, both int64 of the same shape; slots are below :attr:`size`."""
        sources, places = np.empty_like(slots), np.empty_like(slots)
        which = np.searchsorted([phase.begin for phase in self._phases], slots, side="right") - 1
        for number in np.unique(which):
            phase, here = self._phases[number], which == number
            sources[here], places[here] = _places(phase, slots[here] - phase.begin)
        return sources, places

    def drawn(self, slots: int) -> list[int]:
        """How many of the first ``slots`` slots each source has."""
        phase = next(phase for phase in reversed(self._phases) if phase.begin <= slots)
        return [n + more for n, more in zip(phase.drawn, _drawn(phase.shares, slots - phase.begin), strict=True)]


def _drawn(shares: Sequence[int], slots: int) -> list[int]:
    """How many of a phase's first ``slots`` slots each source has: its share of what those before it have left."""
    counts, total = [], sum(shares)
    for share in shares:
        counts.append(slots * share // total if share else 0)
        slots, total = slots - counts[-1], total - share
    return counts


def _places(phase: _Phase, slots: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """:meth:`Mixture.__call__` for slots counted from a phase's begin."""
    sources, places = np.full_like(slots, -1), np.empty_like(slots)
    total = sum(phase.shares)
    for source, share in enumerate(phase.shares):
        if not share:
            continue
        before = slots * share // total
        mine = (sources < 0) & ((slots + 1) * share // total > before)
        sources[mine], places[mine] = source, before[mine] + phase.drawn[source]
        # A slot that is this source's keeps a number that no longer matters.
        slots, total = slots - before, total - share
    return sources, places


def _end(phase: _Phase, source: int, limit: int) -> int | None:
    """The first slot by which ``source`` has given ``limit``; None where it gives nothing in this phase."""
    if not phase.shares[source]:
        return None
    wanted = limit - phase.drawn[source]
    low, high = 0, 1
    while _drawn(phase.shares, high)[source] < wanted:
        high *= 2
    while low < high:
        middle = (low + high) // 2
        if _drawn(phase.shares, middle)[source] < wanted:
            low = middle + 1
        else:
            high = middle
    return phase.begin + low
