"""The verdict of :func:`find_loop` while many outputs are being generated side by side."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.loops.find import EXACT_COVERED, LATEST, RECENT, RECENT_OLD, Loop, find_loop

RECENT_BITS = (1 << RECENT) - 1
LATEST_BITS = (1 << LATEST) - 1


class LoopWatch:
    """Watches ``rows`` outputs and reports each row's loop once, at the first check that finds it.

    A check comes with every ``check_every``-th push and covers the rows active in it; its answer for a row is that of
    :func:`find_loop` over the row's tokens so far. Between checks a token costs one look into the set of the row's
    4-grams: a row in which few recent 4-grams are old cannot be looping, so ``find_loop`` runs only for the others.
    """

    def __init__(self, rows: int, check_every: int = 8) -> None:
        if rows < 1 or check_every < 1:
            raise ValueError(f"LoopWatch needs at least one row and one push a check, got {rows} and {check_every}")
        self._check_every = check_every
        self._pushes = 0
        self._tokens = np.zeros((rows, 256), dtype=np.int64)
        self._lengths = np.zeros(rows, dtype=np.int64)
        self._codes = np.zeros(rows, dtype=np.uint64)  # of the last four tokens
        self._grams: list[set[int]] = [set() for _ in range(rows)]
        self._old = [0] * rows  # bit i: the 4-gram i tokens back had occurred before
        self._reported = [False] * rows

    def push(self, tokens: NDArray[Any], active: NDArray[np.bool_]) -> dict[int, Loop]:
        """Append ``tokens[row]`` ([rows] ids) where ``active`` ([rows] bool); newly found loops by row."""
        rows = np.flatnonzero(active)
        if rows.size and int(self._lengths[rows].max()) == self._tokens.shape[1]:
            self._tokens = np.concatenate([self._tokens, np.zeros_like(self._tokens)], axis=1)
        added = np.asarray(tokens, dtype=np.int64)[rows]
        self._tokens[rows, self._lengths[rows]] = added
        self._lengths[rows] += 1
        # Shifting by 16 leaves the last four tokens in 64 bits: the codes of find.gram_codes.
        codes = (self._codes[rows] << np.uint64(16)) ^ added.astype(np.uint64)
        self._codes[rows] = codes
        complete = self._lengths[rows] >= 4
        for row, code in zip(rows[complete].tolist(), codes[complete].tolist(), strict=True):
            grams = self._grams[row]
            if code in grams:
                self._old[row] = (self._old[row] << 1 | 1) & RECENT_BITS
            else:
                grams.add(code)
                self._old[row] = self._old[row] << 1 & RECENT_BITS
        self._pushes += 1
        return {} if self._pushes % self._check_every else self._check(rows.tolist())

    def reset(self, row: int) -> None:
        """Forget a row: its next token begins a new output."""
        self._lengths[row] = 0
        self._codes[row] = 0
        self._grams[row] = set()
        self._old[row] = 0
        self._reported[row] = False

    def _check(self, rows: list[int]) -> dict[int, Loop]:
        found = {}
        for row in rows:
            old = self._old[row]
            if self._reported[row] or old.bit_count() < RECENT_OLD or not old & LATEST_BITS:
                continue
            length = int(self._lengths[row])
            loop = find_loop(self._tokens[row, :length]) if length >= EXACT_COVERED else None
            if loop is not None:
                self._reported[row] = True
                found[row] = loop
        return found
