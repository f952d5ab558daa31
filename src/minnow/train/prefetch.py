"""The next step's batches, made while this step computes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any


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
