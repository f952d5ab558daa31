"""Bars of ``minnow inspect``: where the parameters sit and what memory they need, in the terminal and as SVG."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from typing import Any

from minnow.progress import quantity, size_text

# Part -> what it is called, its colour on light ground, the mark that tells it apart where there is no colour.
PARTS = {
    "embedding": ("embedding", "#e0a526", "█"),
    "head": ("head", "#b97c12", "▚"),
    "attention": ("attention", "#2f66c4", "▓"),
    "conv": ("convolution", "#0c8078", "▒"),
    "linear_attention": ("linear attention", "#8a5cc2", "░"),
    "mlp": ("MLP", "#687f92", "▪"),
    "experts": ("experts", "#a3b3c0", "·"),
    "router": ("router", "#c0556b", "+"),
    "norms": ("norms", "#b9b4a8", "|"),
}
_MEMORY = {
    "weights": ("weights", "#687f92"),
    "repacked": ("repacked copy", "#d4541c"),
    "state": ("decode state", "#2f66c4"),
    "compute": ("activations", "#0c8078"),
    "runtime": ("vocabulary and library", "#b9b4a8"),
}
_BAR = 60  # columns of a full bar in the terminal


def part_name(part: str) -> str:
    """What a part is called in words."""
    return PARTS[part][0]


def terminal_bars(documents: Sequence[dict[str, Any]], colour: bool) -> str:
    """One bar of :data:`_BAR` columns per model, split by part, and a key."""
    from rich.console import Console
    from rich.text import Text

    text = Text()
    width = max(len(document["model"]) for document in documents)
    for document in documents:
        text.append(f"{document['model']:<{width}}  ")
        for part, columns in _columns(document["shares"]).items():
            _, style, mark = PARTS[part]
            text.append(mark * columns, style=style)
        text.append(f"  {_billions(document['total'])}\n")
    used = [part for part in PARTS if any(document["parts"][part] for document in documents)]
    text.append(" " * (width + 2))
    for part in used:
        name, style, mark = PARTS[part]
        text.append(mark * 2, style=style)
        text.append(f" {name}   ")
    written = io.StringIO()
    console = Console(file=written, force_terminal=colour, color_system="truecolor" if colour else None, width=10_000)
    console.print(text, highlight=False)
    return "\n".join(line.rstrip() for line in written.getvalue().splitlines())


def _billions(count: int) -> str:
    """Parameters as the field writes them: ``354.5M``, ``8.34B``."""
    return quantity(count).replace("G", "B")


def _columns(shares: dict[str, float]) -> dict[str, int]:
    """Whole columns that add up to the bar: rounded down, the largest remainders up; a part that is there keeps one."""
    exact = {part: _BAR * shares[part] for part in PARTS if shares[part]}
    columns = {part: max(1, int(share)) for part, share in exact.items()}
    for part in sorted(exact, key=lambda name: columns[name] - exact[name]):
        if sum(columns.values()) >= _BAR:
            break
        columns[part] += 1
    columns[max(columns, key=lambda name: columns[name])] -= sum(columns.values()) - _BAR
    return columns


_WIDTH, _LEFT, _RIGHT = 960, 32, 32
_INNER = _WIDTH - _LEFT - _RIGHT
_WIDE = {**dict.fromkeys("fijlrt ,", 4.6), **dict.fromkeys("mwMLP", 10.0)}  # pixels of a letter in a legend, else 8
_STYLE = """
text{font:14px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#17211f}
.title{font-size:20px;font-weight:650}.name{font-weight:650}.muted{fill:#65716d;font-size:13px}
.end{text-anchor:end}.mid{text-anchor:middle}.on{fill:#fff;font-size:12.5px;font-weight:650}.dark{fill:#2a1c00}
.grid{stroke:#e2ded4}.budget{stroke:#c2410c;stroke-width:1.5;stroke-dasharray:5 4}.over{fill:#c2410c}
.halo{paint-order:stroke;stroke:#fffefb;stroke-width:5px;stroke-linejoin:round}
"""


def svg_chart(documents: Sequence[dict[str, Any]], context: int) -> str:
    """A standalone SVG: shares of the parameters, then peak memory at ``context`` by type of weights.

    A budget of memory is a line across the second half.
    """
    ink: list[str] = []
    bottom = _shares(ink, documents, 44)
    bottom = _memory(ink, documents, context, bottom + 44)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {bottom}" width="{_WIDTH}" height="{bottom}"'
    names = html.escape(", ".join(document["model"] for document in documents))
    return "\n".join(
        [
            f'{head} role="img" aria-label="Parameters and memory of {names}">',
            f"<style>{_STYLE}</style>",
            f'<rect width="{_WIDTH}" height="{bottom}" fill="#fffefb"/>',
            *ink,
            "</svg>\n",
        ]
    )


def _text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{html.escape(words)}</text>'


def _bar(x: float, y: float, width: float, height: float, colour: str, tip: str) -> str:
    """A piece of a bar; a hair of ground keeps neighbours apart."""
    drawn = max(width - 1, 0.5)
    return (
        f'<rect x="{x:.2f}" y="{y:.1f}" width="{drawn:.2f}" height="{height}" fill="{colour}">'
        f"<title>{html.escape(tip)}</title></rect>"
    )


def _legend(ink: list[str], keys: Sequence[tuple[str, str]], top: float) -> None:
    x = float(_LEFT)
    for name, colour in keys:
        ink.append(f'<rect x="{x:.1f}" y="{top - 10:.1f}" width="12" height="12" rx="2" fill="{colour}"/>')
        ink.append(_text(x + 18, top, name, "muted"))
        x += 18 + sum(_WIDE.get(letter, 8.0) for letter in name) + 18


def _shares(ink: list[str], documents: Sequence[dict[str, Any]], top: float) -> float:
    used = [part for part in PARTS if any(document["parts"][part] for document in documents)]
    ink.append(_text(_LEFT, top, "Where the parameters sit", "title"))
    _legend(ink, [PARTS[part][:2] for part in used], top + 28)
    y = top + 62
    for document in documents:
        active = document["active"] < document["total"]
        amount = f"{_billions(document['total'])} parameters"
        amount += f", {_billions(document['active'])} active" if active else ""
        ink.append(_text(_LEFT, y, document["model"], "name"))
        ink.append(_text(_WIDTH - _RIGHT, y, amount, "muted end"))
        x = float(_LEFT)
        for part in used:
            share = document["shares"][part]
            if not share:
                continue
            name, colour, _ = PARTS[part]
            ink.append(_bar(x, y + 8, _INNER * share, 26, colour, f"{document['model']}: {name} {share:.2%}"))
            if share >= 0.045:
                dark = part in ("embedding", "norms", "experts")
                ink.append(_text(x + _INNER * share / 2, y + 26, f"{share:.1%}", "on mid" + " dark" * dark))
            x += _INNER * share
        y += 60
    return y - 18


def _memory(ink: list[str], documents: Sequence[dict[str, Any]], context: int, top: float) -> float:
    ink.append(_text(_LEFT, top, f"Peak memory in llama.cpp on an x86 CPU, {context:,} tokens of context", "title"))
    _legend(ink, list(_MEMORY.values()), top + 28)
    peaks = [
        (document["model"], [(kind, document["peak_memory"][kind][str(context)]) for kind in ("Q4_0", "Q8_0", "BF16")])
        for document in documents
    ]
    fits = documents[0].get("fits")
    budget = fits["budget_bytes"] if fits else 0
    label, room = 52, 84  # the type before a bar, its size after it
    scale = (_INNER - label - room) / max([budget, *(peak["total"] for _, kinds in peaks for _, peak in kinds)])
    words_on_top: list[str] = []  # written last, over the budget's line
    y = first = top + 62
    for name, kinds in peaks:
        words_on_top.append(_text(_LEFT, y, name, "name halo"))
        y += 10
        for kind, peak in kinds:
            ink.append(_text(_LEFT, y + 14, kind, "muted"))
            x = float(_LEFT + label)
            for part, (words, colour) in _MEMORY.items():
                if peak[part]:
                    tip = f"{name} {kind}: {words} {size_text(peak[part])}"
                    ink.append(_bar(x, y, scale * peak[part], 18, colour, tip))
                x += scale * peak[part]
            over = " over" if fits and peak["total"] > budget else ""
            words_on_top.append(_text(x + 8, y + 14, size_text(peak["total"]), f"muted halo{over}"))
            y += 24
        y += 26
    if fits:
        at = _LEFT + label + scale * budget
        ink.append(f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{first - 10:.1f}" y2="{y - 22:.1f}" class="budget"/>')
        ink.append(_text(at, y - 6, f"budget {fits['budget']}", "muted mid over"))
        y += 14
    ink += words_on_top
    return y
