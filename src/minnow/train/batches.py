"""Where batches come from: rows in a loader's order, warmed up, and made while the step before computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch

from minnow.data.loader import Batch, Loader
from minnow.data.packing import Packed
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


class RampedLoader:
    """A loader's rows, fewer of them and cut shorter at first; an order of ``(seed, epoch)`` alone.

    Args:
        rows: of a whole batch.
    """

    def __init__(self, packed: Packed, rows: int, seed: int, ramp: Ramp) -> None:
        self.rows, self.ramp = rows, ramp
        ramp.check(rows, packed.tokens.shape[1])
        self._unit = rows // ramp.rows
        self._loader = Loader(packed, self._unit, seed)

    def batch(self, step: int) -> Batch:
        """The batch of ``step`` (from 0), a pure function of the seed and the step."""
        first, last = (self.ramp.rows_before(at, self.rows) // self._unit for at in (step, step + 1))
        pieces = self.ramp.divisors(step)[1]
        parts = [self._loader.batch(unit) for unit in range(first, last)]
        tokens, targets, documents = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("tokens", "targets", "documents")
        )
        shape = len(tokens) * pieces, tokens.shape[1] // pieces
        return Batch(tokens.view(shape), targets.view(shape), documents.view(shape))

    def epochs(self, step: int) -> float:
        """How many times the corpus has been seen before ``step``."""
        return self._loader.epochs(self.ramp.rows_before(step, self.rows) // self._unit)
