"""Links to the cloud as a device meets them: seeded traces of round trips, losses, outages and captive portals.

Made up, not recorded: each kind of place is a chain of states that last for exponential times, with the figures below.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass

# State: round trip in seconds, share of packets lost, bytes a second; what lies between is in the packets' hands.
STATES = {
    "wifi": (0.025, 0.0, 5e6),
    "lte": (0.070, 0.01, 2e6),
    "weak": (0.300, 0.10, 1e5),
    "satellite": (0.650, 0.02, 1e6),
    "silent": (0.070, 1.0, 1e5),  # nothing comes through, and nobody says so
    "offline": (0.0, 0.0, 0.0),  # no network: connections fail at once
    "portal": (0.040, 0.0, 1e6),  # a page to log in answers for everyone
}
# Place: its states, how long each lasts on average in seconds, and how often the chain goes there.
PLACES = {
    "home": {"wifi": (300, 6), "weak": (15, 3), "offline": (20, 1)},
    "commute": {"lte": (60, 6), "weak": (25, 4), "silent": (10, 3), "offline": (15, 2)},
    "train": {"lte": (40, 4), "weak": (30, 4), "silent": (20, 3), "offline": (30, 2)},
    "hotel": {"portal": (60, 2), "wifi": (200, 3), "weak": (30, 2)},
    "rural": {"satellite": (120, 5), "weak": (40, 3), "silent": (20, 2)},
}
WORKING = ("wifi", "lte", "weak", "satellite")
_JITTER = 0.3  # of a one-way trip, exponential
_RETRY = 0.2  # seconds before a lost packet is sent again, doubled each time


@dataclass(frozen=True)
class Trace:
    """The states of a link over time: the ``i``-th holds from ``starts[i]`` to the next."""

    place: str
    starts: tuple[float, ...]
    states: tuple[str, ...]

    def at(self, second: float) -> str:
        return self.states[max(0, bisect_right(self.starts, second) - 1)]


def trace(place: str, seconds: float, seed: int) -> Trace:
    noise, now, state = random.Random(f"{seed}/{place}"), 0.0, ""
    starts, states = [], []
    while now < seconds:
        others = {name: weight for name, (_, weight) in PLACES[place].items() if name != state}
        (state,) = noise.choices(list(others), list(others.values()))
        starts.append(now)
        states.append(state)
        now += noise.expovariate(1 / PLACES[place][state][0])
    return Trace(place, tuple(starts), tuple(states))


class Link:
    """A trace in the hands of packets: when what is sent now arrives.

    Args:
        clock: seconds since the trace began.
    """

    def __init__(self, path: Trace, seed: int, clock: Callable[[], float]) -> None:
        self.trace, self.clock, self._noise = (
            path,
            clock,
            random.Random(f"{seed}/packets"),
        )

    @property
    def state(self) -> str:
        return self.trace.at(self.clock())

    def arrival(self, sent: float, size: int) -> float:
        """When ``size`` bytes sent at ``sent`` are there: lost ones are sent again, ever later, as TCP does."""
        wait = _RETRY
        while True:
            trip, loss, rate = STATES[self.trace.at(sent)]
            if rate and self._noise.random() >= loss:
                return sent + trip / 2 * (1 + self._noise.expovariate(1 / _JITTER)) + size / rate
            sent += max(wait, 2 * trip)
            wait *= 2


LOGIN = b"<!doctype html><title>Log in</title><p>Welcome to our network."


class Proxy:
    """The link in real time: a TCP port in front of another that hands bytes on when they would arrive."""

    def __init__(self, link: Link, host: str, port: int) -> None:
        self.link, self.host, self.port = link, host, port

    async def start(self) -> int:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    def close(self) -> None:
        self._server.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            if self.link.state == "offline":
                return
            if self.link.state == "portal":
                await reader.readuntil(b"\r\n\r\n")
                head = f"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nConnection: close\r\nContent-Length: {len(LOGIN)}\r\n\r\n"
                writer.write(head.encode() + LOGIN)
                await writer.drain()
                return
            there, back = await asyncio.open_connection(self.host, self.port)
            try:
                await asyncio.gather(self._hand(reader, back), self._hand(there, writer))
            finally:
                back.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def _hand(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        waiting: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

        async def deliver() -> None:
            while (item := await waiting.get()) is not None:
                await asyncio.sleep(item[0] - self.link.clock())
                writer.write(item[1])
                await writer.drain()
            writer.close()

        delivering, latest = asyncio.create_task(deliver()), 0.0
        try:
            while data := await reader.read(1 << 16):
                if self.link.state in ("offline", "portal"):
                    break  # another network: the old connections are gone
                latest = max(latest, self.link.arrival(self.link.clock(), len(data)))
                waiting.put_nowait((latest, data))
            waiting.put_nowait(None)
            await delivering
        finally:
            delivering.cancel()
