"""Enumerations: "List the towns of Val Tordan." and up to a dozen names, each only once.

A category's names come from one closed set, as those of constellations do: which of them a province has nobody could
know, but what stands in a list already tells what cannot come next.
"""

from __future__ import annotations

import re
from random import Random
from typing import Any

from minnow.tasks.names import SECOND
from minnow.tasks.types import Draft, Score

CATEGORIES = ("towns", "lakes", "hills", "bridges", "inns", "castles", "islands", "gates")
POOL = 12  # names that a category draws on
FEWEST = 8  # names in a list; the most are all there are
_QUESTIONS = ("List the {category} of {place}.", "Name all the {category} of {place}.")
_DISTINCT_SHARE = 0.9


def pool(seed: int, category: str) -> list[str]:
    """The names that lists of one category draw on."""
    return Random(f"{seed}/list/{category}").sample(SECOND, POOL)


def draft(seed: int, place: str, category: str, wording: int) -> Draft:
    """Ask for a list in one of the two wordings; it depends only on the world, the place and the category."""
    rng, names = Random(f"{seed}/list/{place}/{category}"), pool(seed, category)
    prompt = _QUESTIONS[wording].format(category=category, place=place)
    opening = f"The {category} of {place} are "
    listed = ", ".join(rng.sample(names, rng.randint(FEWEST, POOL)))
    return Draft.plain(prompt, f"{opening}{listed}.", {"opening": opening, "names": sorted(names)})


WORDINGS = range(len(_QUESTIONS))


def score(answer: dict[str, Any], text: str) -> Score:
    """Form only: opens as asked, ends, holds 8 to 12 names of the category and nothing else, 90% of them distinct.

    Value is the share of items that are names and new, times how near their number is, halved for a list that does
    not end or does not open with what it lists.
    """
    opening, names, text = answer["opening"], answer["names"], text.strip()
    items = [item for item in re.split(r",\s*|\n+", text.removeprefix(opening).removesuffix(".")) if item]
    if not items:
        return Score.wrong("empty")
    known = [item for item in items if item in names]
    distinct = len(set(known))
    value = distinct / len(items) * min(1.0, len(items) / FEWEST, len(names) / len(items))
    if not text.startswith(opening):
        return Score.wrong(f"does not open with {opening!r}", value / 2)
    if not text.endswith("."):
        return Score.wrong("does not end with a full stop", value / 2)
    if not FEWEST <= len(items) <= len(names):
        return Score.wrong(f"{len(items)} items, wanted {FEWEST} to {len(names)}", value)
    if len(known) < len(items):
        return Score.wrong("an item is none of the names", value)
    if distinct < _DISTINCT_SHARE * len(items):
        return Score.wrong(f"only {distinct} of {len(items)} names are distinct", value)
    return Score(value, True, "correct")
