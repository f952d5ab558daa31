"""Texts that say almost the same as an earlier one: MinHash over runs of words, checked by their true overlap."""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

_BANDS, _ROWS = 20, 4  # texts that share 0.8 of their runs meet in a band with a chance of 0.99997
_WORDS = 5


def near_duplicates(texts: Sequence[str], overlap: float = 0.8) -> list[int]:
    """Places of the texts that share at least ``overlap`` of their five-word runs (Jaccard) with an earlier one.

    Case and spacing do not matter. A text that is left out is still compared with, so that a chain is cut at its first.
    """
    generator = np.random.default_rng(0)
    factors = generator.integers(1, 1 << 63, (_BANDS * _ROWS, 1), dtype=np.uint64) | np.uint64(1)
    offsets = generator.integers(0, 1 << 63, (_BANDS * _ROWS, 1), dtype=np.uint64)
    runs = [_runs(text) for text in texts]
    buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)
    found = []
    for place, own in enumerate(runs):
        lowest = ((factors * own[None] + offsets) >> np.uint64(32)).min(1).reshape(_BANDS, _ROWS)
        keys = [(band, values.tobytes()) for band, values in enumerate(lowest)]
        met = {earlier for key in keys for earlier in buckets[key]}
        if any(_overlap(own, runs[earlier]) >= overlap for earlier in met):
            found.append(place)
        for key in keys:
            buckets[key].append(place)
    return found


def _runs(text: str) -> NDArray[np.uint64]:
    words = text.casefold().split()
    shingles = {" ".join(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1))}
    return np.array(sorted(zlib.crc32(each.encode("utf-8", "surrogatepass")) for each in shingles), np.uint64)


def _overlap(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> float:
    shared = len(np.intersect1d(first, second))
    return shared / (len(first) + len(second) - shared)
