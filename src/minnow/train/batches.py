"""Where batches come from: rows in a loader's order, warmed up, and made while the step before computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from minnow.data.loader import Loader
from minnow.data.order import chances
from minnow.data.rows import Batch
from minnow.train.schedule import Ramp


class Prefetch:
    """A batch source that makes the batches of step ``n + 1`` in a thread once those of ``n`` were asked for.

    Args:
        batches: a pure function of the step and of nothing else: not of the model, which is being trained meanwhile.
            What it raises comes out when its step is asked for, never for a step that nobody asks for.
    """

    def __init__(self, batches: Callable[[int], Sequence[Any]]) -> None:
        self.batches = batches
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[int, Future[Sequence[Any]]] | None = None

    def __call__(self, step: int) -> Sequence[Any]:
        """The batches of ``step``, the same in whatever order steps are asked for."""
        ready, self._next = self._next, None
        if ready is not None and ready[0] != step:
            ready[1].cancel()
            ready = None
        made = ready[1].result() if ready is not None else self._thread.submit(self.batches, step).result()
        self._next = step + 1, self._thread.submit(self.batches, step + 1)
        return made


@dataclass(frozen=True)
class InputDropout:
    """Some of a row's input ids replaced by the padding's, which says nothing; what is to be predicted stays.

    Which positions depends on the seed, the step and the row alone, so the same for any number of ranks.

    Attributes:
        share: of the positions, below 1.
        seed: of a training.
        pad_id: what stands there instead.
    """

    share: float
    seed: int
    pad_id: int

    def __call__(self, batch: Batch, step: int) -> Batch:
        """``batch``, which a loader made for ``step``, with its inputs dropped."""
        if not self.share:
            return batch
        assert batch.rows is not None, "only a loader knows which rows these are"
        length = batch.tokens.shape[1]
        places = batch.rows.numpy()[:, None] * length + np.arange(length)
        dropped = torch.from_numpy(chances(places, self.seed, step) < self.share)
        return replace(batch, tokens=batch.tokens.masked_fill(dropped & (batch.documents > 0), self.pad_id))


class RampedLoader:
    """A loader's rows in its order, fewer of them and cut shorter at first; without a ramp its very batches."""

    def __init__(self, loader: Loader, ramp: Ramp, dropout: InputDropout | None = None) -> None:
        self.loader, self.ramp, self.dropout = loader, ramp, dropout
        ramp.check(loader.rows, loader.length)

    def batch(self, step: int, rank: int = 0, world: int = 1) -> Batch:
        """The batch of ``step`` (from 0), or a rank's slice of it: a pure function of the seed and the step."""
        batch = self.loader.read(self.rows_before(step), self.rows_before(step + 1), rank, world)
        if self.dropout is not None:
            batch = self.dropout(batch, step)
        pieces = self.ramp.divisors(step)[1]
        if pieces == 1:
            return batch
        shape = batch.tokens.shape[0] * pieces, batch.tokens.shape[1] // pieces
        cut = (values.view(shape) for values in (batch.tokens, batch.targets, batch.documents))
        rows, sources = (
            None if each is None else each.repeat_interleave(pieces) for each in (batch.rows, batch.sources)
        )
        return Batch(*cut, rows=rows, sources=sources)

    def rows_before(self, step: int) -> int:
        """Whole rows that all steps before ``step`` have read."""
        return self.ramp.rows_before(step, self.loader.rows)

    def epochs(self, step: int) -> float:
        """How many times the corpus has been seen before ``step``."""
        return self.rows_before(step) / len(self.loader)
