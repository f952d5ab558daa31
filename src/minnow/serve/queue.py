"""Who is answered next: a bounded queue that is fair between clients."""

from __future__ import annotations

import asyncio
import math
import time
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from minnow.serve.errors import ApiError

_MEMORY = 0.1  # weight of the latest answer in the mean time of one


class FairQueue:
    """Slots for answers and a line before them.

    A slot that comes free goes to the client with the fewest answers under way, among equals to the one that was served
    longest ago; a client's own requests keep their order. So one that sends a hundred at once waits for itself.

    Args:
        slots: answers at once.
        most: requests that may wait.
    """

    def __init__(self, slots: int, most: int) -> None:
        self._free, self._slots, self._most = slots, slots, most
        self._waiting: dict[str, deque[asyncio.Future[None]]] = {}
        self._running: Counter[str] = Counter()
        self._turns: dict[str, int] = {}  # clients that wait, or are served: when they were last
        self._turn = 0
        self._seconds = 1.0  # mean time of an answer

    @property
    def waiting(self) -> int:
        return sum(map(len, self._waiting.values()))

    @property
    def running(self) -> int:
        return self._slots - self._free

    def wait_seconds(self) -> float:
        """How long a request that came now would wait, from the mean time of the answers so far."""
        return 0.0 if self._free else self._seconds * (self.waiting + 1) / self._slots

    @asynccontextmanager
    async def slot(self, client: str) -> AsyncIterator[float]:
        """Wait for a slot, hold it, give it back; the value is the seconds waited.

        Raises:
            ApiError: 429, the line is full.
        """
        came = time.monotonic()
        if self._free:
            self._give(client)
        else:
            if self.waiting >= self._most:
                after = math.ceil(self.wait_seconds())
                raise ApiError(429, f"{self.waiting} requests are waiting; try again in {after} s", "queue_full", retry_after=max(1, after))  # fmt: skip
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.setdefault(client, deque()).append(turn)
            try:
                await turn
            except asyncio.CancelledError:
                if turn.done() and not turn.cancelled():
                    self._take_back(client)
                else:
                    self._leave(client, turn)
                raise
        start = time.monotonic()
        try:
            yield start - came
        finally:
            self._seconds += _MEMORY * (time.monotonic() - start - self._seconds)
            self._take_back(client)

    def _give(self, client: str) -> None:
        self._free -= 1
        self._running[client] += 1
        self._turn += 1
        self._turns[client] = self._turn

    def _take_back(self, client: str) -> None:
        self._free += 1
        self._running[client] -= 1
        self._forget(client)
        while self._free and self._waiting:
            chosen = min(self._waiting, key=lambda name: (self._running[name], self._turns.get(name, 0)))
            turn = self._waiting[chosen].popleft()
            if not self._waiting[chosen]:
                del self._waiting[chosen]
            if not turn.cancelled():  # its client may have gone a moment ago
                self._give(chosen)
                turn.set_result(None)

    def _leave(self, client: str, turn: asyncio.Future[None]) -> None:
        line = self._waiting.get(client, ())
        if turn in line:
            self._waiting[client].remove(turn)
            if not line:
                del self._waiting[client]
        self._forget(client)

    def _forget(self, client: str) -> None:
        if not self._running[client] and client not in self._waiting:
            del self._running[client]
            self._turns.pop(client, None)
