"""Extraction: a message of one of four kinds in, a JSON object with a fixed key order out."""

from __future__ import annotations

import json
from random import Random
from typing import Any

from minnow.tasks.names import person_name, place_name
from minnow.tasks.types import Draft, Score, Split

DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
ITEMS = (
    "lamps", "chairs", "books", "plates", "cups", "boots", "tables", "clocks", "coats", "rugs", "bells", "keys", "bowls",
    "hats", "gloves", "knives", "mirrors", "ropes", "ladders", "barrels", "baskets", "curtains", "forks", "pillows",
    "shirts", "spoons", "toys", "wheels", "tents", "saddles",
)  # fmt: skip
_TEMPLATES = {
    "booking": (
        "Hi, this is {name}. Please book a table for {people} on {day} at {time}.",
        "Could you book a table for {people} on {day} at {time}? My name is {name}.",
    ),
    "order": (
        "Hi, this is {name}. I would like to order {goods} for {town}.",
        "Please send {goods} to {town}. My name is {name}.",
    ),
    "delivery": (
        "Hi, this is {name}. Please bring parcel {parcel} to {town} on {day}.",
        "Parcel {parcel} should come to {town} on {day}. My name is {name}.",
    ),
    "appointment": (
        "Hi, this is {name}. I need to see doctor {doctor} on {day} at {time}.",
        "Can I see doctor {doctor} on {day} at {time}? My name is {name}.",
    ),
}
_KEYS = {
    "booking": ("name", "people", "day", "time"),
    "order": ("name", "goods", "town"),
    "delivery": ("name", "parcel", "town", "day"),
    "appointment": ("name", "doctor", "day", "time"),
}


def draw(rng: Random, split: Split) -> Draft:
    """One message of ``split``; its names belong to the split, so its prompt does too."""
    kind = rng.choice(tuple(_KEYS))
    values: dict[str, Any] = {
        "name": person_name(rng, split),
        "people": rng.randint(2, 12),
        "day": rng.choice(DAYS),
        "time": f"{rng.randint(8, 21)}:{rng.choice(('00', '15', '30', '45'))}",
        "goods": f"{rng.randint(2, 60)} {rng.choice(ITEMS)}",
        "town": place_name(rng, split),
        "parcel": rng.randint(1000, 9999),
        "doctor": person_name(rng, split),
    }
    answer = {"kind": kind} | {key: values[key] for key in _KEYS[kind]}
    message = rng.choice(_TEMPLATES[kind]).format(**values)
    return Draft.plain(f"Extract the data as JSON: {message}", json.dumps(answer), answer)


def score(answer: dict[str, Any], text: str) -> Score:
    """Value is the F1 of exact (key, value) pairs; correct when the object is equal."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return Score.wrong("not valid JSON")
    if not isinstance(found, dict):
        return Score.wrong("not a JSON object")
    hits = sum(_same(found[key], value) for key, value in answer.items() if key in found)
    if hits == len(answer) == len(found):
        return Score.right()
    missed = [key for key, value in answer.items() if key not in found or not _same(found[key], value)]
    extra = [key for key in found if key not in answer]
    return Score.wrong(f"wrong or missing: {missed}; not asked for: {extra}", 2 * hits / (len(answer) + len(found)))


def _same(found: Any, wanted: Any) -> bool:
    # 4.0 and True compare equal to integers in Python, but they are other JSON values.
    return type(found) is type(wanted) and found == wanted
