"""Rows of tokens by number: what every corpus offers the loader, and the batches made of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

IGNORED = -100
"""The target of a position that is not trained (torch's ``cross_entropy`` skips it)."""


@dataclass
class Batch:
    """Rows ready for training, int64 ``[rows, T]`` each.

    Attributes:
        tokens: ids; padding holds the pad id.
        targets: the next id of the same document, -100 where nothing is trained.
        documents: 0 is padding, 1, 2, … number the documents within a row.
        rows: ``[rows]`` the corpus rows these are, numbered through all sources; None where the batch is of no corpus.
        sources: ``[rows]`` the number of each row's source; None where there is one.
    """

    tokens: torch.Tensor
    targets: torch.Tensor
    documents: torch.Tensor
    rows: torch.Tensor | None = field(default=None, kw_only=True)
    sources: torch.Tensor | None = field(default=None, kw_only=True)


class Rows(Protocol):
    """A corpus as rows of ``length`` tokens, numbered from 0."""

    @property
    def length(self) -> int: ...

    def __len__(self) -> int: ...

    def fill(self, rows: NDArray[np.int64], batch: Batch, places: NDArray[np.int64]) -> None:
        """Write the rows of these numbers into the rows ``places`` of a batch."""
        ...


def take(corpus: Rows, rows: NDArray[np.int64]) -> Batch:
    """The rows of these numbers, in this order."""
    batch = Batch(*(torch.empty((len(rows), corpus.length), dtype=torch.int64) for _ in range(3)))
    corpus.fill(rows, batch, np.arange(len(rows)))
    batch.rows = torch.from_numpy(rows)
    return batch
