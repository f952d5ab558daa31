"""Batches by step number: nothing to save or restore when a run resumes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from minnow.data.packing import Packed
from minnow.errors import UserError


@dataclass
class Batch:
    """One step's rows; int64 [rows, T] each, fields as in :class:`~minnow.data.packing.Packed`."""

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor


class Loader:
    """``rows`` rows per step, every row once per epoch in an order that depends on ``(seed, epoch)`` alone.

    The rows that do not fill a last batch are left out of that epoch; the next epoch's order leaves out others.
    """

    def __init__(self, packed: Packed, rows: int, seed: int) -> None:
        """Prepare to draw ``rows`` rows a step; ``seed`` is not negative.

        Raises:
            UserError: ``rows`` is below 1, or the corpus is shorter than one batch.
        """
        available, length = packed.tokens.shape
        if rows < 1:
            raise UserError(f"a batch of {rows} rows trains nothing; use at least 1 row")
        if available < rows:
            count = int(np.count_nonzero(packed.documents))
            remedy = f"give more text or use batches of at most {available} rows" if available else "give more text"
            raise UserError(
                f"the corpus is shorter than one batch: its {count} tokens fill {available} rows of {length}, and a "
                f"batch takes {rows}; {remedy}"
            )
        self.packed = packed
        self.rows = rows
        self.seed = seed
        self.steps_per_epoch = available // rows
        self._order: tuple[int, NDArray[np.int64]] | None = None

    def batch(self, step: int) -> Batch:
        """The batch of ``step`` (from 0), a pure function of the seed and the step."""
        epoch, index = divmod(step, self.steps_per_epoch)
        # Sorted, a memory-mapped corpus is read forwards; the order of rows within a batch changes no gradient.
        chosen = np.sort(self._permutation(epoch)[index * self.rows : (index + 1) * self.rows])
        tokens, targets, documents = (
            torch.from_numpy(array[chosen].astype(np.int64))
            for array in (self.packed.tokens, self.packed.targets, self.packed.documents)
        )
        return Batch(tokens, targets, documents)

    def epochs(self, step: int) -> float:
        """How many times the corpus has been seen before ``step``."""
        return step / self.steps_per_epoch

    def _permutation(self, epoch: int) -> NDArray[np.int64]:
        if self._order is None or self._order[0] != epoch:
            generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
            self._order = epoch, generator.permutation(len(self.packed.tokens))
        return self._order[1]
