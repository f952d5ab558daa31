"""What one section of the page is, and the sentences several sections share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minnow.recipe.report.markup import Markup, counted, interval, percent, tag
from minnow.recipe.report.read import Run, after

STAGE_COLOURS = {"pretrain": "base", "sft": "sft", "dpo": "dpo", "grpo": "rl", "rl": "rl", "merge": "merge"}


@dataclass(frozen=True)
class Section:
    """A heading, the one sentence to take away (computed from the numbers) and the figures."""

    anchor: str
    short: str
    title: str
    takeaway: str
    body: Markup


def figure(content: Any, caption: Any = None) -> Markup:
    """A chart or table with its caption."""
    return tag("figure", content, tag("figcaption", caption) if caption else None)


def stage_colour(stage: str) -> str:
    """The colour class of a stage."""
    return STAGE_COLOURS.get(stage, "merge")


def temperature_text(temperature: float) -> str:
    """``greedy`` for 0, else ``T = 0.7``."""
    return "greedy" if temperature == 0 else f"T = {temperature:g}"


def loop_stages(run: Run) -> list[tuple[str, dict[str, Any]]]:
    """``(stage, loop rate)`` of every measured checkpoint at its lowest temperature and largest token budget."""
    measured = [(each["stage"], [one for one in each.get("loops") or [] if one["total"]]) for each in run.measures()]
    return [
        (stage, min(loops, key=lambda one: (one["temperature"], -one["max_new_tokens"])))
        for stage, loops in measured
        if loops
    ]


def after_sft(stages: list[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """The stages from SFT on, or all of them when there was no SFT."""
    names = [stage for stage, _ in stages]
    return stages[names.index("sft") :] if "sft" in names else stages


def change(before: dict[str, Any], now: dict[str, Any]) -> str:
    """How one rate moved against its 95% intervals: ``fell``, ``rose``, ``stayed within the intervals``."""
    if now["high"] < before["low"]:
        return "fell"
    if now["low"] > before["high"]:
        return "rose"
    return "stayed within the intervals"


def rate_text(rate: dict[str, Any]) -> str:
    """``31.2% (27.3–35.4%)``; for zero, ``0 of 500 (at most 0.76%)``, the upper end of its interval."""
    if rate["count"] == 0:
        return f"{counted(rate)} (at most {percent(rate['high'])})"
    return f"{percent(rate['rate'])} ({interval(rate)})"


def change_sentence(what: str, start: tuple[str, dict[str, Any]], end: tuple[str, dict[str, Any]]) -> str:
    """One sentence on a rate before and after, true whichever way it went."""
    (first, old), (last, new) = start, end
    how = change(old, new)
    if how == "stayed within the intervals":
        return f"{what} {how}: {rate_text(old)} {after(first)}, {rate_text(new)} {after(last)}."
    return f"{what} {how} from {rate_text(old)} {after(first)} to {rate_text(new)} {after(last)}."
