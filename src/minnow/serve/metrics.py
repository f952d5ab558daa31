"""Counts and times in Prometheus' text format."""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Counters, histograms of seconds, and gauges that are read when asked for."""

    def __init__(self) -> None:
        self._help: dict[str, tuple[str, str]] = {}
        self._counts: dict[str, dict[Labels, float]] = {}
        self._times: dict[str, dict[Labels, list[float]]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}

    def counter(self, name: str, explained: str) -> None:
        self._help[name], self._counts[name] = ("counter", explained), defaultdict(float)

    def histogram(self, name: str, explained: str) -> None:
        self._help[name], self._times[name] = ("histogram", explained), {}

    def gauge(self, name: str, explained: str, read: Callable[[], float]) -> None:
        self._help[name], self._gauges[name] = ("gauge", explained), read

    def add(self, name: str, amount: float = 1, **labels: str) -> None:
        self._counts[name][tuple(labels.items())] += amount

    def time(self, name: str, seconds: float, **labels: str) -> None:
        """Note a time; its row is the counts by bucket and, last, their sum in seconds."""
        row = self._times[name].setdefault(tuple(labels.items()), [0.0] * (len(_BUCKETS) + 2))
        row[bisect_left(_BUCKETS, seconds)] += 1
        row[-1] += seconds

    def render(self) -> str:
        lines: list[str] = []
        for name, (kind, explained) in self._help.items():
            lines += [f"# HELP {name} {explained}", f"# TYPE {name} {kind}"]
            for labels, value in self._counts.get(name, {}).items():
                lines.append(_line(name, labels, value))
            for labels, row in self._times.get(name, {}).items():
                total = 0.0
                for bound, count in zip((*map(str, _BUCKETS), "+Inf"), row[:-1], strict=True):
                    total += count
                    lines.append(_line(f"{name}_bucket", (*labels, ("le", bound)), total))
                lines += [_line(f"{name}_sum", labels, row[-1]), _line(f"{name}_count", labels, total)]
            if name in self._gauges:
                lines.append(_line(name, (), self._gauges[name]()))
        return "\n".join(lines) + "\n"


def _line(name: str, labels: Labels, value: float) -> str:
    quoted = (
        f'{key}="{text}"'
        for key, text in (
            (key, text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for key, text in labels
        )
    )
    joined = ",".join(quoted)
    return f"{name}{{{joined}}} {value:g}" if joined else f"{name} {value:g}"
