"""Charts of a fit and of a plan as single SVG files: residuals, iso-FLOP curves, optima."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from minnow.scaling.fit import Fit
from minnow.scaling.laws import TRAIN_FLOPS, Law, human
from minnow.scaling.plan import Choice

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 56
# Eight colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a7a7a")
_BINS = 6  # iso-FLOP curves


@dataclass(frozen=True)
class Marks:
    """One series: points ``(x, y, tip)``, joined by a line or drawn as dots."""

    name: str
    points: Sequence[tuple[float, float, str]]
    colour: int
    line: bool = False


def chart(series: Sequence[Marks], title: str, x_title: str, y_title: str, y_format: Callable[[float], str]) -> str:
    """An SVG document with a logarithmic x axis and a linear y axis.

    Names of the series make the legend; a name of "" stays out of it.
    """
    xs = [math.log10(x) for one in series for x, _, _ in one.points]
    ys = [y for one in series for _, y, _ in one.points]
    x_low, x_high, y_low, y_high = min(xs), max(xs), min(ys), max(ys)
    x_pad, y_pad = 0.03 * (x_high - x_low) or 0.3, 0.05 * (y_high - y_low) or 0.1
    x_low, x_high, y_low, y_high = x_low - x_pad, x_high + x_pad, y_low - y_pad, y_high + y_pad

    def at(x: float, y: float) -> tuple[str, str]:
        across = (math.log10(x) - x_low) / (x_high - x_low)
        up = (y - y_low) / (y_high - y_low)
        left = _LEFT + across * (_WIDTH - _LEFT - _RIGHT)
        return f"{left:.1f}", f"{_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM):.1f}"

    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="sans-serif" font-size="12">'
    )
    ink = [
        opening,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{html.escape(title)}</text>',
    ]
    decades = [
        step * 10.0**power
        for power in range(math.floor(x_low), math.ceil(x_high) + 1)
        for step in ((1,) if x_high - x_low > 4 else (1, 3) if x_high - x_low > 1.5 else (1, 2, 5))
        if x_low <= math.log10(step * 10.0**power) <= x_high
    ]
    floor, ceiling = _HEIGHT - _BOTTOM, _TOP
    for tick in decades:
        x, _ = at(tick, y_low)
        label = human(tick) if tick < 1e15 else f"{tick:.0e}".replace("e+", "e")
        ink.append(f'<path d="M{x} {floor}V{ceiling}" stroke="#ddd"/>')
        ink.append(f'<text x="{x}" y="{floor + 16}" text-anchor="middle" fill="#444">{label}</text>')
    for tick in _round_ticks(y_low, y_high):
        _, y = at(10**x_low, tick)
        ink.append(f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>')
        ink.append(f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end" fill="#444">{y_format(tick)}</text>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    ink.append(f'<text x="{middle}" y="{_HEIGHT - 22}" text-anchor="middle">{html.escape(x_title)}</text>')
    ink.append(f'<text x="{_LEFT}" y="{_TOP - 8}" fill="#444">{html.escape(y_title)}</text>')
    for one in series:
        colour = _COLOURS[one.colour % len(_COLOURS)]
        if one.line:
            path = " ".join(",".join(at(x, y)) for x, y, _ in one.points)
            ink.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
            continue
        for x_value, y_value, tip in one.points:
            x, y = at(x_value, y_value)
            ink.append(
                f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}" fill-opacity="0.75">'
                f"<title>{html.escape(tip)}</title></circle>"
            )
    named = {one.name: one.colour for one in series if one.name}
    place = float(_LEFT)
    for name, index in named.items():
        colour = _COLOURS[index % len(_COLOURS)]
        ink.append(f'<circle cx="{place + 5:.0f}" cy="{_HEIGHT - 8}" r="4" fill="{colour}"/>')
        ink.append(f'<text x="{place + 13:.0f}" y="{_HEIGHT - 4}">{html.escape(name)}</text>')
        place += 28 + 6.6 * len(name)
    return "\n".join([*ink, "</svg>"]) + "\n"


def _round_ticks(low: float, high: float) -> list[float]:
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
    return [number * step for number in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def residual_chart(fit: Fit) -> str:
    """Measured over predicted loss, by training compute."""
    points = fit.points
    marks = [
        (float(c), 100 * math.expm1(r), f"{place}: {human(n)} on {human(d)}, {100 * math.expm1(r):+.2f}%")
        for c, r, n, d, place in zip(
            points.flops, fit.residuals, points.params, points.tokens, points.places, strict=True
        )
    ]
    ends = (float(points.flops.min()), float(points.flops.max()))
    zero = Marks("", [(ends[0], 0.0, ""), (ends[1], 0.0, "")], 7, line=True)
    return chart(
        [zero, Marks("", marks, 0)],
        f"Residuals of the {fit.form} fit, {len(points)} runs",
        "training FLOPs",
        "measured over predicted loss, %",
        lambda value: f"{value:+.3g}",
    )


def isoflop_chart(fit: Fit) -> str:
    """Loss by size: runs in bands of compute, and the law's curve at each band's middle with its optimum."""
    points, law = fit.points, fit.law
    assert isinstance(law, Law)
    logs = np.log10(points.flops)
    edges = np.linspace(logs.min(), logs.max() + 1e-9, _BINS + 1)
    series: list[Marks] = []
    for band in range(_BINS):
        inside = np.flatnonzero((logs >= edges[band]) & (logs < edges[band + 1]))
        if not len(inside):
            continue
        flops = float(10 ** logs[inside].mean())
        size = points.params[inside]
        line = np.geomspace(size.min() / 2, size.max() * 2, 60)
        curve = law.loss(line, flops / (TRAIN_FLOPS * line))
        shown = curve <= points.loss.max() * 1.05
        curve_points = [(float(n), float(loss), "") for n, loss in zip(line[shown], curve[shown], strict=True)]
        if curve_points:
            series.append(Marks("", curve_points, band, line=True))
        name = f"{flops:.1e} FLOPs".replace("e+", "e")
        series.append(
            Marks(
                name,
                [
                    (
                        float(points.params[row]),
                        float(points.loss[row]),
                        f"{points.places[row]}: {points.loss[row]:.4f}",
                    )
                    for row in inside
                ],
                band,
            )
        )
    return chart(
        series, f"Loss at equal compute, {fit.form} fit", "parameters", "loss, nats/token", lambda y: f"{y:.3g}"
    )


def plan_chart(choices: Sequence[Choice], laws: Sequence[Law], flops: float | None) -> str:
    """The plan's choices by tokens per parameter; with a training budget, each law's curve at that budget."""
    series: list[Marks] = []
    shown = [choice for choice in choices if choice.loss is not None and choice.rule != "t2"]
    for index, law in enumerate(laws):
        own = [choice for choice in shown if choice.law == law.name]
        if flops is not None and own:
            sizes = [choice.params for choice in own] + [law.optimum(flops)[0]]
            line = np.geomspace(min(sizes) / 3, max(sizes) * 3, 120)
            tokens = flops / (TRAIN_FLOPS * line)
            curve = zip(tokens / line, law.loss(line, tokens), strict=True)
            series.append(Marks("", [(float(x), float(y), "") for x, y in curve], index, line=True))
        tips = [
            (
                choice.ratio,
                float(choice.loss or 0),
                f"{choice.rule}, {law.name}: {human(choice.params)} on {human(choice.tokens)}",
            )
            for choice in own
        ]
        if tips:
            series.append(Marks(law.name, tips, index))
    return chart(
        series, "Loss by tokens per parameter", "tokens per parameter", "loss, nats/token", lambda y: f"{y:.3g}"
    )
