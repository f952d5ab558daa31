"""Which rank the others wait for.

In a step all ranks take equally long, whoever is slow. So each is timed at what it does alone: reading its batches, and a
small piece of work that is the same for all.
"""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from minnow.progress import say
from minnow.train.precision import work_seconds
from minnow.train.ranks import Ranks

SLOW = 1.5
"""Times as long as the middle rank works a slow one."""

READING = 0.1
"""Share of the time that a slow rank reads longer than the middle one."""

PERIOD = 10.0
"""Seconds between two comparisons at least; what is shorter says little."""

T = TypeVar("T")


@dataclass(frozen=True)
class Lap:
    """What a rank took, in seconds: for the piece of work, and for reading, out of those since the comparison before."""

    host: str
    working: float
    reading: float
    seconds: float


def stragglers(laps: Sequence[Lap]) -> dict[int, str]:
    """The slow ones of all ranks, and of each a sentence."""
    working, reading = (statistics.median_low([getattr(lap, name) for lap in laps]) for name in ("working", "reading"))
    found = {}
    for rank, lap in enumerate(laps):
        who, others = f"rank {rank} on {lap.host}", "the others wait for it"
        if lap.working > SLOW * working:
            found[rank] = f"{who} computes {lap.working / working:.1f} times as long as the middle rank; {others}"
        elif lap.reading > reading + READING * lap.seconds:
            found[rank] = (
                f"{who} reads {lap.reading:.1f} s of {lap.seconds:.1f}, the middle rank {reading:.1f}; {others}"
            )
    return found


class Pace:
    """This rank's pace, compared with the others' from time to time."""

    def __init__(self) -> None:
        self._reading, self._since = 0.0, time.perf_counter()
        self._named: set[int] = set()

    def timed(self, batches: Iterable[T]) -> Iterator[T]:
        """``batches``, as they are read."""
        reader = iter(batches)
        while True:
            begun = time.perf_counter()
            try:
                batch = next(reader)
            except StopIteration:
                return
            finally:
                self._reading += time.perf_counter() - begun
            yield batch

    def compare(self, ranks: Ranks, device: str) -> None:
        """Name the ranks that have become slow; all ranks call it."""
        now = time.perf_counter()
        if ranks.count == 1 or ranks.from_first(now - self._since < PERIOD):
            return
        lap = Lap(platform.node(), work_seconds(device, rounds=3), self._reading, now - self._since)
        slow = stragglers(ranks.everyone(lap))
        for rank in slow.keys() - self._named:
            say(slow[rank])
        self._reading, self._since, self._named = 0.0, now, set(slow)
