"""Trade-offs between things that all should be small: which points are not beaten, and which cover most."""

from __future__ import annotations

from collections.abc import Sequence


def dominated_volume(points: Sequence[tuple[float, ...]], corner: tuple[float, ...]) -> float:
    """Hypervolume between ``points`` and ``corner``, all objectives to be made small; points beyond it count nothing.

    Exact, by slicing along the last axis; for the few dozen points that a search ends with.
    """
    inside = [point for point in points if all(x < c for x, c in zip(point, corner, strict=True))]
    if not inside:
        return 0.0
    if len(corner) == 1:
        return corner[0] - min(point[0] for point in inside)
    levels = sorted({point[-1] for point in inside})
    volume = 0.0
    for level, upper in zip(levels, [*levels[1:], corner[-1]], strict=True):
        below = [point[:-1] for point in inside if point[-1] <= level]
        volume += dominated_volume(below, corner[:-1]) * (upper - level)
    return volume


def pareto(points: Sequence[tuple[float, ...]]) -> list[int]:
    """Places of the points that no other is at least as good as in everything and better in something."""

    def beaten(point: tuple[float, ...]) -> bool:
        return any(other != point and all(a <= b for a, b in zip(other, point, strict=True)) for other in points)

    return [place for place, point in enumerate(points) if not beaten(point)]


def by_hypervolume(points: Sequence[tuple[float, ...]], corner: tuple[float, ...], count: int) -> list[int]:
    """Places of the ``count`` points that one after another add most to the dominated volume, LFM2's order
    (2511.23404); the first is the one that dominates most by itself."""
    scale = [c or 1.0 for c in corner]
    scaled = [tuple(x / s for x, s in zip(point, scale, strict=True)) for point in points]
    edge = tuple(c / s for c, s in zip(corner, scale, strict=True))
    chosen: list[int] = []
    left = list(range(len(points)))
    while left and len(chosen) < count:
        held = [scaled[place] for place in chosen]
        best = max(left, key=lambda place: (dominated_volume([*held, scaled[place]], edge), -sum(scaled[place])))
        chosen.append(best)
        left.remove(best)
    return chosen
