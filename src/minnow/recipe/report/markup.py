"""HTML that is escaped by construction, and how the report writes numbers."""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from typing import Any, TypeGuard

_VOID = {"meta", "link", "br", "line", "rect", "circle", "polyline", "polygon", "path"}


class Markup(str):
    """Text that is already HTML. Only :func:`tag`, :func:`join` and :func:`raw` make it."""


def raw(text: str) -> Markup:
    """Mark the report's own constant text (style, script) as HTML; never call it on anything read from a file."""
    return Markup(text)


def join(*parts: Any) -> Markup:
    """Concatenate; everything that is not :class:`Markup` is escaped, None disappears, lists are flattened."""
    pieces: list[str] = []
    for part in parts:
        if part is None:
            continue
        if isinstance(part, list | tuple):
            pieces.append(join(*part))
        else:
            pieces.append(part if isinstance(part, Markup) else html.escape(str(part)))
    return Markup("".join(pieces))


def tag(name: str, /, *children: Any, **attributes: Any) -> Markup:
    """One element. ``class_`` → ``class``, ``data_tip`` → ``data-tip``; attributes that are None are left out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in _VOID and not children:
        return Markup(f"<{name}{written}/>")
    return Markup(f"<{name}{written}>{join(*children)}</{name}>")


def page(title: str, style: str, body: Markup, policy: str | None = None) -> str:
    """A whole document that loads nothing; ``policy`` is its Content-Security-Policy."""
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        None if policy is None else tag("meta", http_equiv="Content-Security-Policy", content=policy),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("link", rel="icon", href="data:,"),
        tag("title", title),
        tag("style", raw(style)),
    )
    return f"<!doctype html>\n{tag('html', head, body, lang='en')}\n"


def table(
    headers: Sequence[Any], rows: Sequence[Sequence[Any]], label: str, text_columns: Sequence[int] = (0,)
) -> Markup:
    """A table that scrolls sideways by itself on a narrow screen; columns not in ``text_columns`` align right."""

    def cells(name: str, row: Sequence[Any]) -> list[Markup]:
        kinds = [None if column in text_columns else "n" for column in range(len(row))]
        return [tag(name, value, class_=kind) for value, kind in zip(row, kinds, strict=True)]

    return tag(
        "div",
        tag(
            "table",
            tag("thead", tag("tr", cells("th", headers))),
            tag("tbody", [tag("tr", cells("td", row)) for row in rows]),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=label,
    )


def folded(summary: str, *children: Any) -> Markup:
    """A closed disclosure, for numbers and text that not every reader wants."""
    return tag("details", tag("summary", summary), *children)


def _known(value: float | None) -> TypeGuard[float]:
    return value is not None and math.isfinite(value)


def percent(value: float | None) -> str:
    """0.312 → ``31.2%``; whole 0 and 100 without decimals; below 0.1% with two."""
    if not _known(value):
        return "–"
    if value in (0, 1):
        return f"{value:.0%}"
    return f"{value:.2%}" if abs(value) < 0.001 else f"{value:.1%}"


def interval(rate: dict[str, Any]) -> str:
    """The 95% interval of a rate: ``27.3–35.4%``."""
    low, high = rate.get("low"), rate.get("high")
    if not (_known(low) and _known(high)):
        return "–"
    return f"{percent(low).removesuffix('%')}–{percent(high)}"


def counted(rate: dict[str, Any]) -> str:
    """``156 of 500``."""
    return f"{rate['count']:,} of {rate['total']:,}"


def number(value: float | None, digits: int = 2) -> str:
    """Fixed decimals with thousands separators; a dash for a missing value."""
    return f"{value:,.{digits}f}" if _known(value) else "–"


def significant(value: float | None) -> str:
    """Three significant digits without an exponent: ``1,240``, ``38.4``, ``0.0123``."""
    if not _known(value):
        return "–"
    if value == 0:
        return "0"
    decimals = max(0, 2 - math.floor(math.log10(abs(value))))
    return f"{round(value, decimals):,.{decimals}f}" if decimals else f"{value:,.0f}"


def bytes_text(value: float | None) -> str:
    """Decimal units, as file managers print them: ``1.24 MB``."""
    if not _known(value):
        return "–"
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= size:
            return f"{significant(value / size)} {unit}"
    return f"{value:.0f} B"


def plain(name: str) -> str:
    """``two_hop_questions`` → ``Two hop questions``."""
    return capital(name.replace("_", " ").replace("-", " ").strip())


def capital(text: str) -> str:
    """The first letter large, the rest as it is."""
    return text[:1].upper() + text[1:]


def listing(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else ", ".join(items[:-1]) + " and " + items[-1]
