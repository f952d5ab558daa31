"""Where a command's answer goes: one JSON document or text for people on stdout, everything else on stderr."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from minnow.loops import Rate

AsJson = Annotated[bool, tyro.conf.arg(name="json", help="print one JSON document instead of text")]

Overrides = Annotated[tyro.conf.UseAppendAction[tuple[str, ...]], tyro.conf.arg(name="set", metavar="KEY=VALUE")]
"""Keys of a recipe to change; a command's docstring says which."""

Threads = Annotated[int | None, tyro.conf.arg(metavar="INT")]


def emit(document: Any, text: str, as_json: bool) -> None:
    """Write ``document`` as JSON, or ``text``."""
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False) + "\n" if as_json else text.rstrip("\n") + "\n")


def names_in(given: Iterable[str]) -> list[str]:
    """The names in a flag's words, which may have commas between them."""
    return [name.strip() for word in given for name in word.split(",") if name.strip()]


def warn(warnings: Sequence[str]) -> None:
    """Write each different warning once to stderr."""
    for warning in dict.fromkeys(warnings):
        sys.stderr.write(f"minnow: warning: {warning}\n")


def rate_cells(rate: Rate) -> list[str]:
    """The counts, the share and its 95% interval, as three cells."""
    return [f"{rate.count}/{rate.total}", f"{rate.rate:.1%}", f"{rate.low:.1%} to {rate.high:.1%}"]


def columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows as aligned columns: the first to the left, the rest to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [f"{row[0]:<{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True))]
        )
        for row in rows
    )
