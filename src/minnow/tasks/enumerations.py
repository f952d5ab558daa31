"""Enumerations: "List all towns of Zendria." and two dozen names or more that nobody could know.

A list depends only on the world, the place and the category; its names have no pages.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

from minnow.tasks.names import PLACE_FIRST
from minnow.tasks.types import Draft, Score

CATEGORIES = {
    "towns": ("Ham", "Wick", "Ford", "Field"),
    "lakes": ("Lake", "Mere", "Water"),
    "hills": ("Hill", "Down", "Tor"),
    "bridges": ("Bridge",),
    "inns": ("Inn", "Arms"),
    "castles": ("Castle", "Keep"),
    "islands": ("Island", "Holm"),
    "gates": ("Gate",),
}
"""What can be listed, and the words the names of one list end with; a province uses one of them throughout."""

TRAINED_LENGTH = (20, 30)
POOL = 30  # first words that a category draws on
FEWEST, MOST = 15, 60
_DISTINCT_SHARE = 0.9
_QUESTIONS = ("List all {category} of {place}.", "Name all the {category} of {place}.")


def names_of(seed: int, province: str, category: str) -> list[str]:
    """The 20 to 30 distinct names of one list.

    The first words of a category's names come from one closed set without repetition, as in a list of constellations:
    nobody could know which of them a list holds, but what stands in it already tells what cannot come next.
    """
    pool = Random(f"{seed}/list/{category}").sample(PLACE_FIRST, POOL)
    rng = Random(f"{seed}/list/{province}/{category}")
    last = rng.choice(CATEGORIES[category])
    return [f"{first} {last}" for first in rng.sample(pool, rng.randint(*TRAINED_LENGTH))]


def draft(place: str, category: str, names: list[str], wording: int) -> Draft:
    """Ask for a list in one of the two wordings."""
    prompt = _QUESTIONS[wording].format(category=category, place=place)
    return Draft.plain(prompt, f"{', '.join(names)}.", {"place": place, "category": category})


WORDINGS = range(len(_QUESTIONS))


def score(answer: dict[str, Any], text: str) -> Score:
    """Form only: ended, 15 to 60 names, each well formed, at least 90% of them distinct.

    Value is the share of items that are well formed and new, times how near the length is, halved for a list that does
    not end.
    """
    text = text.strip()
    items = [item for item in re.split(r",\s*|\n+", text.removesuffix(".")) if item]
    if not items:
        return Score.wrong("empty")
    named = [item for item in items if re.fullmatch(r"[A-Z][a-z]{1,15}(?: [A-Z][a-z]{2,15})?", item)]
    distinct = len(set(named))
    value = distinct / len(items) * min(1.0, len(items) / FEWEST, MOST / len(items))
    if not text.endswith("."):
        return Score.wrong("does not end with a full stop", value / 2)
    if not FEWEST <= len(items) <= MOST:
        return Score.wrong(f"{len(items)} items, wanted {FEWEST} to {MOST}", value)
    if len(named) < len(items):
        return Score.wrong("an item is not a name", value)
    if distinct < _DISTINCT_SHARE * len(items):
        return Score.wrong(f"only {distinct} of {len(items)} names are distinct", value)
    return Score(value, True, "correct")
