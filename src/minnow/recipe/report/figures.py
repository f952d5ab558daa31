"""Charts as inline SVG.

Every position is a percentage of the drawing area and every size is in pixels, so a chart is as
sharp, and its text as large, on a phone as on a laptop. Colours are CSS classes (``c-sft`` …):
the style sheet gives them one value for light and one for dark. Marks carry ``data-tip``, which the
page's script shows on hover, tap or focus; each chart's numbers also stand in a table beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minnow.recipe.report.markup import Markup, counted, interval, join, percent, significant, tag

# Below this rate the scale is nearly linear, above it nearly logarithmic: 0 of 500 and its bound (0.8%) stay apart.
_RATE_KNEE = 0.005
_RATE_TICKS = (0.0, 0.01, 0.03, 0.1, 0.3, 1.0)


@dataclass(frozen=True)
class Scale:
    """Values to percent of the axis. ``kind`` is ``linear``, ``log`` or ``rate`` (see ``_RATE_KNEE``)."""

    low: float
    high: float
    kind: str = "linear"

    def at(self, value: float) -> float:
        """Position in percent, kept inside the axis."""
        low, high, here = (self._bend(v) for v in (self.low, self.high, min(max(value, self.low), self.high)))
        return 100 * ((here - low) / (high - low)) if high > low else 50.0

    def _bend(self, value: float) -> float:
        if self.kind == "log":
            return math.log(value)
        return math.log1p(value / _RATE_KNEE) if self.kind == "rate" else value

    def ticks(self, most: int = 6) -> list[float]:
        """Round values inside the axis, at most ``most``."""
        if self.kind == "rate":
            return [tick for tick in _RATE_TICKS if self.low <= tick <= self.high]
        if self.kind == "log":
            decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            ticks: list[float] = []
            for steps in ((1, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9), (1, 2, 3, 4, 6, 8), (1, 2, 4), (1, 3), (1,)):
                ticks = [s * 10.0**d for d in decades for s in steps if self.low <= s * 10.0**d <= self.high]
                if len(ticks) <= most:
                    break
            # Less than an octave holds too few round logarithmic steps.
            return ticks if len(ticks) > 2 else Scale(self.low, self.high).ticks(4)
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(s * power for s in (1, 2, 2.5, 5, 10) if s * power >= rough * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


RATE = Scale(0.0, 1.0, "rate")
SHARE = Scale(0.0, 1.0)


@dataclass(frozen=True)
class Series:
    """One line of a plot: points ``(x, y, tip)``; ``dots`` marks each point."""

    points: Sequence[tuple[float, float, str]]
    colour: str
    dots: bool = True
    light: bool = False


def _p(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") + "%"


def tick_percent(value: float) -> str:
    """Axis labels: ``3%``, ``0.5%``."""
    return f"{100 * value:g}%"


def share_scale(rates: Sequence[float]) -> Scale:
    """A linear scale in whole tenths around the rates, at least three tenths long."""
    low, high = math.floor(10 * min(rates) + 1e-9), math.ceil(10 * max(rates) - 1e-9)
    while high - low < 3:
        low, high = (low - 1, high) if low > 0 and (high >= 10 or high - low == 1) else (low, high + 1)
    return Scale(low / 10, high / 10)


def line_plot(
    series: Sequence[Series],
    x: Scale,
    y: Scale,
    label: str,
    x_title: str,
    y_title: str,
    x_format: Any = significant,
    y_format: Any = significant,
    marks: Sequence[tuple[float, str]] = (),
    height: int = 260,
) -> Markup:
    """Lines over two axes; ``marks`` are named vertical lines at an x."""
    ink: list[Markup] = []
    for tick in y.ticks(5):
        at = _p(100 - y.at(tick))
        ink.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        ink.append(tag("text", y_format(tick), x="0", y=at, dx="-8", dy="4", class_="tick end"))
    for tick in x.ticks(6):
        at = _p(x.at(tick))
        ink.append(tag("line", x1=at, x2=at, y1="100%", y2="100%", class_="grid"))
        ink.append(tag("text", x_format(tick), x=at, y="100%", dy="18", class_="tick mid"))
    for value, name in marks:
        place = x.at(value)
        ink.append(tag("line", x1=_p(place), x2=_p(place), y1="0", y2="100%", class_="mark"))
        side = "note end" if place > 80 else "note mid"
        ink.append(tag("text", name, x=_p(place), y="0", dy="-5", class_=side))
    for one in series:
        light = " light" if one.light else ""
        points = " ".join(f"{10 * x.at(px):.1f},{1000 - 10 * y.at(py):.1f}" for px, py, _ in one.points)
        curve = tag(
            "polyline", points=points, class_=f"curve c-{one.colour}{light}", vector_effect="non-scaling-stroke"
        )
        # The inner viewport stretches freely; the stroke does not.
        ink.append(tag("svg", curve, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"))
        if one.dots:
            ink += [
                tag("circle", cx=_p(x.at(px)), cy=_p(100 - y.at(py)), r="4", class_=f"dot c-{one.colour}", data_tip=tip)
                for px, py, tip in one.points
            ]
    return tag(
        "div",
        tag("div", y_title, class_="ytitle"),
        tag("div", tag("svg", ink, role="img", aria_label=label), class_="plot", style=f"height:{height}px"),
        tag("div", x_title, class_="xtitle"),
        class_="near",
    )


def _whisker(rate: dict[str, Any], colour: str, scale: Scale, y: str, tip: str) -> list[Markup]:
    low, high = _p(scale.at(rate["low"])), _p(scale.at(rate["high"]))
    return [
        tag("line", x1=low, x2=high, y1=y, y2=y, class_=f"whisker c-{colour}"),
        tag("circle", cx=_p(scale.at(rate["rate"])), cy=y, r="6", class_=f"dot c-{colour}", data_tip=tip),
    ]


def _rows(rows: Sequence[tuple[Markup, Markup | None, Markup]], scale: Scale) -> Markup:
    """Label, track and value side by side, over one shared axis; a row without a track is a heading."""
    ticks = scale.ticks(4)
    grid = [tag("line", x1=_p(scale.at(t)), x2=_p(scale.at(t)), y1="0", y2="100%", class_="grid") for t in ticks]
    body = [
        tag("div", name, class_="rhead")
        if track is None
        else tag(
            "div",
            tag("div", name, class_="rname"),
            tag("svg", grid, track, class_="track", aria_hidden="true"),
            tag("div", value, class_="rvalue"),
            class_="row",
        )
        for name, track, value in rows
    ]
    axis = []
    for tick in ticks:
        anchor = "mid" if 0 < tick < 1 else "end" if tick else ""
        axis.append(tag("text", tick_percent(tick), x=_p(scale.at(tick)), y="12", class_=f"tick {anchor}"))
    foot = tag("div", tag("div"), tag("svg", axis, class_="axis", aria_hidden="true"), tag("div"), class_="row foot")
    return tag("div", body, foot, class_="rows near")


def rate_rows(groups: Sequence[tuple[Markup, Sequence[tuple[str, str, dict[str, Any]]]]], scale: Scale) -> Markup:
    """Under each heading, one dot with its interval for each ``(name, colour, rate)``."""
    drawn: list[tuple[Markup, Markup | None, Markup]] = []
    for heading, rows in groups:
        drawn.append((heading, None, join()))
        for name, colour, rate in rows:
            ink = join(_whisker(rate, colour, scale, "50%", _rate_tip(name, rate)))
            drawn.append((tag("span", name), ink, _rate_value(rate)))
    return _rows(drawn, scale)


def _rate_tip(name: str, rate: dict[str, Any]) -> str:
    return f"{name}\n{percent(rate['rate'])} · {counted(rate)}\n95% interval {interval(rate)}"


def _rate_value(rate: dict[str, Any]) -> Markup:
    return tag("span", tag("b", percent(rate["rate"])), " ", tag("span", interval(rate), class_="muted"))


def pair_rows(rows: Sequence[tuple[str, Sequence[tuple[str, str, dict[str, Any]]]]], scale: Scale) -> Markup:
    """Several dots with intervals on each named row: ``(name, [(series, colour, rate)])``."""
    drawn: list[tuple[Markup, Markup | None, Markup]] = []
    for name, group in rows:
        ink: list[Markup] = []
        for place, (series, colour, rate) in enumerate(group):
            height = _p(100 * (place + 1) / (len(group) + 1))
            ink += _whisker(rate, colour, scale, height, _rate_tip(f"{name} · {series}", rate))
        parts: list[Any] = []
        for place, (_, colour, rate) in enumerate(group):
            parts += [" → " if place else "", tag("b", percent(rate["rate"]), class_=f"t-{colour}")]
        drawn.append((tag("span", name), join(ink), tag("span", parts)))
    return _rows(drawn, scale)


def _bar(width: float, kind: str, tip: str | None = None) -> Markup:
    return tag("rect", x="0", y="22%", width=_p(width), height="56%", rx="3", class_=kind, data_tip=tip)


def bar_rows(rows: Sequence[tuple[str, str, dict[str, Any]]]) -> Markup:
    """Bars from zero with the interval drawn over the end of each."""
    drawn: list[tuple[Markup, Markup | None, Markup]] = []
    for name, colour, rate in rows:
        low, high = _p(SHARE.at(rate["low"])), _p(SHARE.at(rate["high"]))
        ink = [
            _bar(SHARE.at(rate["rate"]), f"bar c-{colour}", _rate_tip(name, rate)),
            tag("line", x1=low, x2=high, y1="50%", y2="50%", class_="over"),
            tag("line", x1=low, x2=low, y1="38%", y2="62%", class_="over"),
            tag("line", x1=high, x2=high, y1="38%", y2="62%", class_="over"),
        ]
        drawn.append((tag("span", name), join(ink), _rate_value(rate)))
    return _rows(drawn, SHARE)


def value_bars(rows: Sequence[tuple[str, float, str]], colour: str) -> Markup:
    """Plain bars for amounts ``(name, amount, written)``, longest filling the width."""
    most = max((amount for _, amount, _ in rows), default=0) or 1
    return tag(
        "div",
        [
            tag(
                "div",
                tag("div", name, class_="rname"),
                tag(
                    "svg",
                    _bar(100, "rail"),
                    _bar(max(100 * amount / most, 0.6), f"bar c-{colour}", f"{name}: {written}"),
                    class_="track",
                    aria_hidden="true",
                ),
                tag("div", tag("b", written), class_="rvalue"),
                class_="row",
            )
            for name, amount, written in rows
        ],
        class_="rows near amounts",
    )


def stacked_bar(parts: Sequence[tuple[str, str, float, str]], label: str) -> Markup:
    """One bar of shares that add up to 1: ``(name, colour, share, tip)``; wide parts carry their percentage."""
    ink: list[Markup] = []
    left = 0.0
    for _, colour, share, tip in parts:
        place = {"x": _p(100 * left), "y": "0", "width": _p(100 * share), "height": "100%"}
        ink.append(tag("rect", **place, class_=f"seg c-{colour}", data_tip=tip))
        if share >= 0.1:
            written, middle = f"{share:.1%}" if share >= 0.16 else f"{share:.0%}", _p(100 * (left + share / 2))
            ink.append(tag("text", written, x=middle, y="50%", dy="5", class_=f"seglabel on-{colour} mid"))
        left += share
    return tag("svg", ink, class_="stack", role="img", aria_label=label)


def slope(points: Sequence[tuple[str, str, dict[str, Any]]], label: str) -> Markup:
    """One task over the stages: ``(stage, colour, rate)`` from left to right, whiskers are intervals."""
    width = 100 / len(points)
    scale = share_scale([rate[end] for _, _, rate in points for end in ("low", "high")])
    ink: list[Markup] = []
    for tick in scale.ticks(4):
        at = _p(100 - scale.at(tick))
        ink.append(tag("line", x1="0", x2="100%", y1=at, y2=at, class_="grid"))
        ink.append(tag("text", tick_percent(tick), x="0", y=at, dx="-6", dy="4", class_="tick end"))
    places = [(place + 0.5) * width for place in range(len(points))]
    line = " ".join(
        f"{10 * p:.1f},{1000 - 10 * scale.at(r['rate']):.1f}" for p, (_, _, r) in zip(places, points, strict=True)
    )
    curve = tag("polyline", points=line, class_="curve thin", vector_effect="non-scaling-stroke")
    ink.append(tag("svg", curve, viewBox="0 0 1000 1000", preserveAspectRatio="none", width="100%", height="100%"))
    for place, (stage, colour, rate) in zip(places, points, strict=True):
        top, middle, bottom = (_p(100 - scale.at(rate[end])) for end in ("high", "rate", "low"))
        ink.append(tag("line", x1=_p(place), x2=_p(place), y1=top, y2=bottom, class_=f"whisker c-{colour}"))
        ink.append(
            tag("circle", cx=_p(place), cy=middle, r="5", class_=f"dot c-{colour}", data_tip=_rate_tip(stage, rate))
        )
        ink.append(tag("text", stage, x=_p(place), y="100%", dy="18", class_="tick mid stage"))
    return tag("div", tag("svg", ink, role="img", aria_label=label), class_="plot small near", style="height:140px")


def legend(items: Sequence[tuple[str, str]]) -> Markup:
    """Coloured keys: ``(name, colour)``."""
    keys = [
        tag("span", tag("svg", tag("circle", cx="6", cy="6", r="5", class_=f"dot c-{colour}"), class_="key"), name)
        for name, colour in items
    ]
    return tag("div", keys, class_="legend", aria_hidden="true")
