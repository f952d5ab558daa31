"""What the router knows of the two ways: how fast they are, and whether the cloud is there."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_WEIGHT = 0.2  # of the latest answer in a mean
_RETRIES_A_REQUEST, _MOST_RETRIES = 0.1, 10.0


@dataclass
class Speed:
    """Running means of a way to an answer: seconds to its first token, tokens a second after it, tokens of an answer."""

    first: float
    rate: float
    tokens: float = 128.0

    def note(self, first: float, seconds: float, tokens: int) -> None:
        """Take an answer into account: seconds to its first token and in all."""
        self.first += _WEIGHT * (first - self.first)
        if tokens > 1 and seconds > first:
            self.rate += _WEIGHT * ((tokens - 1) / (seconds - first) - self.rate)
        self.tokens += _WEIGHT * (tokens - self.tokens)

    def seconds(self, most: int | None) -> float:
        """Predicted time of an answer of at most ``most`` tokens."""
        expected = self.tokens if most is None else min(self.tokens, most)
        return self.first + expected / max(self.rate, 1e-3)


class Breaker:
    """Leaves a server alone that fails: after ``failures`` in a row for ``pause`` seconds, then it is tried with one
    request, and opened again by its success."""

    def __init__(self, failures: int, pause: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._pause, self._clock = failures, pause, clock
        self._failures, self._until, self._probing = 0, 0.0, False

    @property
    def open(self) -> bool:
        """Whether no request may go there now."""
        return self._failures >= self._most and (self._probing or self._clock() < self._until)

    def start(self) -> None:
        """A request goes there."""
        self._probing = self._failures >= self._most

    def worked(self) -> None:
        self._failures, self._probing = 0, False

    def failed(self) -> None:
        self._failures, self._probing = self._failures + 1, False
        self._until = self._clock() + self._pause

    def left(self) -> None:
        """The request was given up by its client, which says nothing of the server."""
        self._probing = False


class RetryBudget:
    """One retry for every ten requests, so that retries never double the load of a server in trouble."""

    def __init__(self) -> None:
        self._left = 1.0

    def request(self) -> None:
        self._left = min(_MOST_RETRIES, self._left + _RETRIES_A_REQUEST)

    def take(self) -> bool:
        if self._left < 1:
            return False
        self._left -= 1
        return True


def battery(supplies: Path = Path("/sys/class/power_supply")) -> int | None:
    """The battery's charge in per cent where the machine runs on it; None on mains, or where it does not say."""
    try:
        for supply in sorted(supplies.iterdir()):
            if (supply / "type").read_text().strip() == "Battery":
                charging = (supply / "status").read_text().strip() != "Discharging"
                return None if charging else int((supply / "capacity").read_text())
    except (OSError, ValueError):
        pass
    return None
