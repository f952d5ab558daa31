"""Batches by step number: nothing to save or restore when a run resumes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray

from minnow.data.order import Mixture, Permutation
from minnow.data.rows import Batch, Rows, take
from minnow.errors import UserError


@dataclass(frozen=True)
class Source:
    """One part of a mixture.

    Attributes:
        weight: share of the rows of training; the shares add up to 1.
        epochs: the most passes over it; afterwards the other sources share its place. None: no limit.
        in_order: rows come as they are numbered, for a corpus packed from easy to hard; else each epoch has an order
            of its own.
    """

    name: str
    rows: Rows
    weight: float = 1.0
    epochs: float | None = None
    in_order: bool = False

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise UserError(f"source {self.name} holds no text; give it some or leave it out")
        if self.epochs is not None and int(self.epochs * len(self.rows)) < 1:
            raise UserError(
                f"source {self.name}: {self.epochs:g} epochs of {len(self.rows)} rows are no row; raise its epochs"
            )


class Loader:
    """``rows`` rows per step out of one corpus or a mixture, in an order of ``(seed, step)`` alone.

    Every epoch of a source has each of its rows once. Any batch is made in the same time and memory as the first.
    With several ranks each reads its slice of the whole batch, which is the same for any number of them.
    """

    def __init__(self, corpus: Rows | Sequence[Source], rows: int, seed: int) -> None:
        """Prepare to draw ``rows`` rows a step; ``seed`` is not negative.

        Raises:
            UserError: ``rows`` is below 1, the corpus is shorter than one batch, or the sources do not go together.
        """
        self.sources = corpus if isinstance(corpus, Sequence) else [Source("corpus", corpus)]
        self.rows, self.seed = rows, seed
        self.length = self.sources[0].rows.length
        if any(source.rows.length != self.length for source in self.sources):
            raise ValueError("the sources of a mixture have rows of one length")
        sizes = [len(source.rows) for source in self.sources]
        self._first = np.cumsum([0, *sizes])
        if rows < 1:
            raise UserError(f"a batch of {rows} rows trains nothing; use at least 1 row")
        if len(self) < rows:
            raise UserError(
                f"the corpus is shorter than one batch: it fills {len(self)} rows of {self.length} tokens, and a "
                f"batch takes {rows}; give more text or use batches of at most {len(self)} rows"
            )
        limits = [None if source.epochs is None else int(source.epochs * len(source.rows)) for source in self.sources]
        self._mixture = Mixture([source.weight for source in self.sources], limits)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of ``step`` (from 0), or a rank's slice of it: a pure function of the seed and the step."""
        return self.read(step * self.rows, (step + 1) * self.rows, rank, world)

    def read(self, first: int, last: int, rank: int = 0, world: int = 1) -> Batch:
        """Rows ``first`` to ``last`` (exclusive) of training, counted over all its steps, or a rank's slice of them.

        Raises:
            UserError: the sources do not last so long, or there are fewer rows than ranks.
        """
        if last - first < world:
            raise UserError(f"a batch of {last - first} rows cannot be shared by {world} ranks; use more rows")
        numbers = self._order(first, last)
        chosen = numbers[rank * len(numbers) // world : (rank + 1) * len(numbers) // world]
        batch = take(self, chosen)
        if len(self.sources) > 1:
            batch.sources = torch.from_numpy(self._owners(chosen))
        return batch

    def __len__(self) -> int:
        return int(self._first[-1])

    def fill(self, rows: NDArray[np.int64], batch: Batch, places: NDArray[np.int64]) -> None:
        """Write corpus rows by number, counted through all sources; a loader is its corpus's :class:`Rows`."""
        owners = self._owners(rows)
        for owner in np.unique(owners):
            here = owners == owner
            self.sources[owner].rows.fill(rows[here] - self._first[owner], batch, places[here])

    def _owners(self, rows: NDArray[np.int64]) -> NDArray[np.int64]:
        """The source's number of each corpus row."""
        return np.searchsorted(self._first, rows, side="right") - 1

    def epochs(self, step: int) -> float:
        """How many times the corpus, all sources together, has been read before ``step``."""
        return step * self.rows / len(self)

    def passes(self, rows: int) -> dict[str, float]:
        """How many times each source has been read by the first ``rows`` rows of training."""
        drawn = self._mixture.drawn(rows)
        return {source.name: n / len(source.rows) for source, n in zip(self.sources, drawn, strict=True)}

    def dry(self, rows: int) -> dict[str, int]:
        """Of a training of ``rows`` rows: the row from which on a source has given all its epochs, by name.

        Raises:
            UserError: all sources together do not last so long.
        """
        self._check(rows)
        return {self.sources[source].name: slot for source, slot in self._mixture.dry.items() if slot < rows}

    def _check(self, rows: int) -> None:
        size = self._mixture.size
        if size is not None and rows > size:
            names = ", ".join(source.name for source in self.sources)
            raise UserError(
                f"the sources ({names}) run dry after {size} rows of {self.length} tokens, {size // self.rows} steps of "
                f"{self.rows}; raise their epochs, give more text or train for fewer steps"
            )

    def _order(self, first: int, last: int) -> NDArray[np.int64]:
        """Corpus rows, numbered through all sources, of the rows ``first`` to ``last`` of training."""
        self._check(last)
        owners, places = self._mixture(np.arange(first, last))
        numbers = np.empty_like(places)
        for owner in np.unique(owners):
            here, size = owners == owner, len(self.sources[owner].rows)
            epochs, index = places[here] // size, places[here] % size
            if not self.sources[owner].in_order:
                for epoch in np.unique(epochs):
                    now = epochs == epoch
                    index[now] = _permutation(size, self.seed, int(owner), int(epoch))(index[now])
            numbers[here] = self._first[owner] + index
        return numbers


@lru_cache(maxsize=256)
def _permutation(*of: int) -> Permutation:
    return Permutation(*of)
