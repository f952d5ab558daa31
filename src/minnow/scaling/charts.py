"""Charts of a fit and of a plan as single SVG files: residuals, iso-FLOP curves, optima."""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from minnow.scaling.fit import Fit
from minnow.scaling.laws import TRAIN_FLOPS, Array, Law, human
from minnow.scaling.plan import Budget, Choice

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 20, 44, 56
# Eight colours that stay apart for colour-blind readers (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000", "#7a7a7a")
_BINS = 6  # iso-FLOP curves
_DECADES = 0.8  # that an x axis spans at least, so that it has ticks


@dataclass(frozen=True)
class Marks:
    """One series: points ``(x, y, tip)``, joined by a line or drawn as dots.

    Attributes:
        labels: written beside the dots.
    """

    name: str
    points: Sequence[tuple[float, float, str]]
    colour: int
    line: bool = False
    dashed: bool = False
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class _Frame:
    """What the axes span: decimal logarithms of x, and y."""

    left: float
    right: float
    low: float
    high: float

    @classmethod
    def around(cls, series: Sequence[Marks]) -> _Frame:
        xs = [math.log10(x) for one in series for x, _, _ in one.points]
        ys = [y for one in series for _, y, _ in one.points]
        left, right, low, high = min(xs), max(xs), min(ys), max(ys)
        x_pad = max(0.03 * (right - left), (_DECADES - (right - left)) / 2)
        y_pad = 0.08 * (high - low) or 0.1
        return cls(left - x_pad, right + x_pad, low - y_pad, high + y_pad)

    def x(self, value: float) -> float:
        """In pixels from the left."""
        share = (math.log10(value) - self.left) / (self.right - self.left)
        return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)

    def y(self, value: float) -> float:
        """In pixels from the top."""
        share = (value - self.low) / (self.high - self.low)
        return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)

    def x_ticks(self) -> list[float]:
        span = self.right - self.left
        return [
            step * 10.0**power
            for power in range(math.floor(self.left), math.ceil(self.right) + 1)
            for step in ((1,) if span > 4 else (1, 3) if span > 1.5 else (1, 2, 5))
            if self.left <= math.log10(step * 10.0**power) <= self.right
        ]

    def y_ticks(self) -> list[float]:
        rough = (self.high - self.low) / 6
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(size * power for size in (1, 2, 2.5, 5, 10) if size * power >= rough * 0.999)
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [number * step for number in range(first, last + 1)]


def chart(series: Sequence[Marks], title: str, x_title: str, y_title: str, y_format: Callable[[float], str]) -> str:
    """An SVG document with a logarithmic x axis and a linear y axis.

    Names of the series make the legend; a name of "" stays out of it.
    """
    frame = _Frame.around(series)
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
        f'aria-label="{html.escape(title)}" font-family="sans-serif" font-size="12">'
    )
    ink = [
        opening,
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="#fff"/>',
        f'<text x="{_LEFT}" y="20" font-size="15" font-weight="bold">{html.escape(title)}</text>',
        *_axes(frame, x_title, y_title, y_format),
        *(shape for one in series for shape in _shapes(one, frame)),
        *_labels(series, frame),
        *_legend(series),
    ]
    return "\n".join([*ink, "</svg>"]) + "\n"


def _axes(frame: _Frame, x_title: str, y_title: str, y_format: Callable[[float], str]) -> Iterator[str]:
    floor, ceiling = _HEIGHT - _BOTTOM, _TOP
    for tick in frame.x_ticks():
        x = frame.x(tick)
        label = human(tick) if tick < 1e15 else f"{tick:.0e}".replace("e+", "e")
        yield f'<path d="M{x} {floor}V{ceiling}" stroke="#ddd"/>'
        yield f'<text x="{x}" y="{floor + 16}" text-anchor="middle" fill="#444">{label}</text>'
    for tick in frame.y_ticks():
        y = frame.y(tick)
        yield f'<path d="M{_LEFT} {y}H{_WIDTH - _RIGHT}" stroke="#ddd"/>'
        yield f'<text x="{_LEFT - 6}" y="{y}" dy="4" text-anchor="end" fill="#444">{y_format(tick)}</text>'
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    yield f'<text x="{middle}" y="{_HEIGHT - 22}" text-anchor="middle">{html.escape(x_title)}</text>'
    yield f'<text x="{_LEFT}" y="{_TOP - 8}" fill="#444">{html.escape(y_title)}</text>'


def _shapes(one: Marks, frame: _Frame) -> Iterator[str]:
    colour = _COLOURS[one.colour % len(_COLOURS)]
    if one.line:
        dash = ' stroke-dasharray="5 4"' if one.dashed else ""
        path = " ".join(f"{frame.x(x)},{frame.y(y)}" for x, y, _ in one.points)
        yield f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.6"{dash}/>'
        return
    for x, y, tip in one.points:
        yield (
            f'<circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="4" fill="{colour}" fill-opacity="0.75">'
            f"<title>{html.escape(tip)}</title></circle>"
        )


def _legend(series: Sequence[Marks]) -> Iterator[str]:
    place = float(_LEFT)
    for name, index in {one.name: one.colour for one in series if one.name}.items():
        colour = _COLOURS[index % len(_COLOURS)]
        yield f'<circle cx="{place + 5:.0f}" cy="{_HEIGHT - 8}" r="4" fill="{colour}"/>'
        yield f'<text x="{place + 13:.0f}" y="{_HEIGHT - 4}">{html.escape(name)}</text>'
        place += 28 + 6.6 * len(name)


def _labels(series: Sequence[Marks], frame: _Frame) -> Iterator[str]:
    """Labels of dots, each at the first place around its dot where it covers nothing."""
    dots = [one for one in series if not one.line]
    places = [(frame.x(x), frame.y(y)) for one in dots for x, y, _ in one.points]
    texts = [(text, one.colour) for one in dots for text in one.labels or [""] * len(one.points)]
    taken = [(x - 5, y - 5, x + 5, y + 5) for x, y in places]
    for (x, y), (text, colour) in zip(places, texts, strict=True):
        if not text:
            continue
        width = 5.8 * len(text)
        boxes = [
            (left, y + down - 10, left + width, y + down + 3)
            for down in (-9, 17, -23, 31, -37, 45)
            for left in (x - width / 2, x + 8, x - 8 - width)
        ]
        inside = [box for box in boxes if box[0] > _LEFT and box[2] < _WIDTH - 4]
        free = [
            box
            for box in inside
            if all(box[0] > t[2] or box[2] < t[0] or box[1] > t[3] or box[3] < t[1] for t in taken)
        ]
        left, _, right, bottom = (free or inside or boxes)[0]
        taken.append((left, bottom - 13, right, bottom))
        yield (
            f'<text x="{left:.1f}" y="{bottom - 3:.1f}" fill="{_COLOURS[colour % len(_COLOURS)]}" stroke="#fff" '
            f'stroke-width="3" paint-order="stroke">{html.escape(text)}</text>'
        )


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
        lambda value: f"{value:+.3g}" if value else "0",
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
        series,
        f"Loss at equal compute, {fit.form} fit",
        "parameters",
        "loss, nats/token; runs in bands of compute, the law at each band's middle",
        lambda y: f"{y:.3g}",
    )


def plan_chart(choices: Sequence[Choice], laws: Sequence[Law], budget: Budget) -> str:
    """The plan's choices by tokens per parameter, on each law's curves.

    Solid: other sizes for the same training compute. Dashed: the device's largest model on fewer and more tokens.
    """
    series: list[Marks] = []
    unique = budget.unique_tokens
    shown = [choice for choice in choices if choice.loss is not None]
    ratios = [choice.ratio for choice in shown]
    line = np.geomspace(min(ratios) / 4, max(ratios) * 4, 120)
    losses = [choice.loss for choice in shown if choice.loss is not None]
    top = max(losses) + max(0.1, 0.5 * (max(losses) - min(losses)))  # curves of few tokens would flatten the rest

    def curve(law: Law, colour: int, params: Array, dashed: bool) -> Marks:
        losses = law.loss(params, params * line, unique)
        kept = zip(line[losses <= top], losses[losses <= top], strict=True)
        return Marks("", [(float(x), float(y), "") for x, y in kept], colour, True, dashed)

    for index, law in enumerate(laws):
        own = [choice for choice in shown if choice.law == law.name]
        if budget.flops is not None:
            series.append(curve(law, index, np.sqrt(budget.flops / (TRAIN_FLOPS * line)), False))
        if budget.max_params is not None:
            series.append(curve(law, index, np.full_like(line, budget.max_params), True))
        together: dict[tuple[float, float], list[Choice]] = {}
        for choice in own:
            together.setdefault((float(f"{choice.params:.3g}"), float(f"{choice.tokens:.3g}")), []).append(choice)
        dots, labels = [], []
        for same in together.values():
            one = same[0]
            rules = ", ".join(choice.rule for choice in same)
            dots.append(
                (one.ratio, float(one.loss or 0), f"{rules}, {law.name}: {human(one.params)} on {human(one.tokens)}")
            )
            labels.append(f"{rules}: {human(one.params)}")
        series.append(Marks(law.name, dots, index, labels=labels))
    drawn = [
        *([f"solid at {budget.flops:.3g} training FLOPs"] if budget.flops is not None else []),
        *([f"dashed at {human(budget.max_params)} parameters"] if budget.max_params is not None else []),
    ]
    return chart(
        series,
        "Loss by tokens per parameter",
        "tokens per parameter",
        "; ".join(["loss, nats/token", *drawn]),
        lambda y: f"{y:.3g}",
    )
