"""Texts that say almost the same as an earlier one: MinHash over runs of words, checked by their true overlap."""

from __future__ import annotations

import math
import re
import zlib
from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from minnow.errors import UserError

_WORDS = 5
_MISSED = 1e-4  # chance that two texts of exactly the overlap meet in no band
_SURE = 0.99  # from here on a few bands find all
_FINE_ROWS, _COARSE_ROWS, _FINE_FROM = 4, 2, 0.6  # hashes in a band: fewer bands are needed, or fewer chance meetings
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation or spacing."""
    return _WORD.findall(text.casefold())


class NearCopies:
    """Texts that were kept, asked of each new one whether it shares at least ``overlap`` of its runs with one of them.

    Runs are of five words (a shorter text is one run); the overlap is Jaccard's, of exact sets. Candidates are found by
    MinHash and locality-sensitive hashing (Broder 1997; Indyk and Motwani 1998). Kept runs take 4 bytes a word.

    Raises:
        UserError: the overlap is not above 0 and at most 1.
    """

    def __init__(self, overlap: float) -> None:
        if not 0 < overlap <= 1:
            raise UserError(f"an overlap of {overlap:g} tells no near copies; use one above 0 and up to 1, such as 0.8")
        self.overlap = overlap
        self._rows = _FINE_ROWS if overlap >= _FINE_FROM else _COARSE_ROWS
        self._bands = math.ceil(math.log(_MISSED) / math.log1p(-(min(overlap, _SURE) ** self._rows)))
        generator = np.random.default_rng(0)
        size = self._bands * self._rows, 1
        self._factors = generator.integers(1, 1 << 63, size, dtype=np.uint64) | np.uint64(1)
        self._offsets = generator.integers(0, 1 << 63, size, dtype=np.uint64)
        self._kept: list[NDArray[np.uint32]] = []
        self._buckets: dict[tuple[int, bytes], list[int]] = defaultdict(list)

    def __call__(self, text: str) -> bool:
        """Whether ``text`` is a near copy; if not, it is kept."""
        runs = _runs(text)
        hashes = (self._factors * runs.astype(np.uint64) + self._offsets) >> np.uint64(32)
        lowest = hashes.min(1).reshape(self._bands, self._rows)
        keys = [(band, values.tobytes()) for band, values in enumerate(lowest)]
        met = {earlier for key in keys for earlier in self._buckets.get(key, ())}
        if any(_overlap(runs, self._kept[earlier]) >= self.overlap for earlier in met):
            return True
        for key in keys:
            self._buckets[key].append(len(self._kept))
        self._kept.append(runs)
        return False


def near_duplicates(texts: Sequence[str], overlap: float = 0.8) -> list[int]:
    """Places of the texts that are near copies of an earlier one that is none itself (:class:`NearCopies`)."""
    known = NearCopies(overlap)
    return [place for place, text in enumerate(texts) if known(text)]


def _runs(text: str) -> NDArray[np.uint32]:
    words = words_of(text)
    runs = {" ".join(words[i : i + _WORDS]) for i in range(max(1, len(words) - _WORDS + 1))}
    return np.array(sorted({zlib.crc32(each.encode("utf-8", "surrogatepass")) for each in runs}), np.uint32)


def _overlap(first: NDArray[np.uint32], second: NDArray[np.uint32]) -> float:
    shared = len(np.intersect1d(first, second, assume_unique=True))
    return shared / (len(first) + len(second) - shared)
