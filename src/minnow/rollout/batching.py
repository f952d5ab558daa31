"""Which sequences are read together: of like length, so that little is padding."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MOST_POSITIONS = 8192
"""Read at once; more fills caches with activations."""

_ENOUGH = 768  # positions that keep the matrix products busy
_FILLED = 0.875  # of a batch's width, before a shorter sequence begins another batch


def batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Places, longest first, those that are read together in a list."""
    batch: list[int] = []
    for place in sorted(range(len(lengths)), key=lambda place: -lengths[place]):
        width = lengths[batch[0]] if batch else 0
        full = (len(batch) + 1) * width > MOST_POSITIONS
        shorter = lengths[place] < _FILLED * width and len(batch) * width >= _ENOUGH
        if batch and (full or shorter):
            yield batch
            batch = []
        batch.append(place)
    if batch:
        yield batch
