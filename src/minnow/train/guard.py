"""Loss spikes: an update that a step's own loss speaks against is left out, and a run that stays bad goes back."""

from __future__ import annotations

import statistics
from typing import Any

WINDOW = 128
"""Steps whose losses make the level that a step is held against; no step is judged before there are so many."""

MAX_SPIKES = 5
"""Spikes in a row after which it is the weights that are bad, not the batches."""

_LEAST_DEVIATION = 0.005  # of the median
_LEAST_NATS = 0.01


class SpikeGuard:
    """Compares each step's loss with the median of the last :data:`WINDOW` sound ones.

    Args:
        factor: how many median absolute deviations above the median a loss may lie; 0 lets all pass. The deviation
            counts as at least 0.5% of the median, so that a loss that hardly moves makes no alarm of nothing, and as
            0.01 nats, so that one mistake in a batch is none where the loss is nearly zero.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.losses: list[float] = []
        self.spikes = 0

    @property
    def limit(self) -> float | None:
        """The loss from which on a step is a spike; None while too few are known."""
        if not self.factor or len(self.losses) < WINDOW:
            return None
        level = statistics.median(self.losses)
        deviation = statistics.median(abs(loss - level) for loss in self.losses)
        return level + self.factor * max(deviation, _LEAST_DEVIATION * abs(level), _LEAST_NATS)

    def passes(self, loss: float) -> bool:
        """Whether an update with this (finite) loss may be made; a sound loss moves the level on."""
        limit = self.limit
        if limit is not None and loss > limit:
            self.spikes += 1
            return False
        self.spikes = 0
        self.losses = [*self.losses[1 - WINDOW :], loss]
        return True

    @property
    def lost(self) -> bool:
        """Whether so many spikes came in a row that skipping more is no remedy."""
        return self.spikes >= MAX_SPIKES

    def state(self) -> dict[str, Any]:
        """What an exact resume needs."""
        return {"losses": self.losses, "spikes": self.spikes}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over a state written by :meth:`state`."""
        self.losses, self.spikes = list(state["losses"]), state["spikes"]
