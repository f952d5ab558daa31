"""Summaries: a short weekly report in, one sentence with its checkable facts out."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from minnow.tasks.extraction import DAYS, ITEMS
from minnow.tasks.names import person_name, place_name
from minnow.tasks.types import Draft, Score, Split

LONGEST_SUMMARY = 24  # words


def _sales(rng: Random, split: Split) -> tuple[list[str], str, list[str]]:
    town, goods = place_name(rng, split), rng.choice(ITEMS)
    counts = sorted(rng.sample(range(2, 60), rng.choice((2, 3))))
    people = [person_name(rng, split) for _ in counts]
    body = [f"{who} sold {count}." for who, count in zip(people[:-1], counts[:-1], strict=True)]
    body.append(f"The best seller was {people[-1]} with {counts[-1]}.")
    rng.shuffle(body)
    report = [f"Weekly sales report for {town}.", f"The shop sold {sum(counts)} {goods} in all.", *body]
    summary = f"{town} sold {sum(counts)} {goods}, and the best seller was {people[-1]} with {counts[-1]}."
    return report, summary, [town, str(sum(counts)), people[-1], str(counts[-1])]


def _weather(rng: Random, split: Split) -> tuple[list[str], str, list[str]]:
    town, (warm, cold, dry) = place_name(rng, split), rng.sample(DAYS, 3)
    low, high, rain = rng.randint(1, 12), rng.randint(14, 35), rng.randint(3, 90)
    body = [
        f"The coldest day was {cold} with {low} degrees.",
        f"The warmest day was {warm} with {high} degrees.",
        f"{dry} was dry.",
        f"In all {rain} millimetres of rain fell.",
    ]
    rng.shuffle(body)
    summary = f"The warmest day in {town} was {warm} with {high} degrees, and {rain} millimetres of rain fell."
    return [f"Weekly weather report for {town}.", *body], summary, [town, warm, str(high), str(rain)]


def _match(rng: Random, split: Split) -> tuple[list[str], str, list[str]]:
    home, away = place_name(rng, split), place_name(rng, split)
    first, best = person_name(rng, split), person_name(rng, split)
    lost = rng.randint(0, 4)
    won = lost + rng.randint(1, 4)
    body = [
        f"{home} won by {won} to {lost}.",
        f"{first} scored the first goal.",
        f"The best player was {best}.",
        f"In all {rng.randint(100, 999)} people watched.",
    ]
    rng.shuffle(body)
    summary = f"{home} beat {away} by {won} to {lost}, and the best player was {best}."
    return [f"Match report for {home} against {away}.", *body], summary, [home, away, f"{won} to {lost}", best]


def draw(rng: Random, split: Split) -> Draft:
    """One report of ``split``; its names belong to the split, so its prompt does too."""
    report, summary, facts = rng.choice((_sales, _weather, _match))(rng, split)
    answer = {"facts": facts, "longest": LONGEST_SUMMARY}
    return Draft.plain(f"Summarise in one sentence: {' '.join(report)}", summary, answer)


def score(answer: dict[str, Any], text: str) -> Score:
    """Value is the share of facts present; correct when all are, in one sentence that is short enough."""
    text = text.strip()
    missing = [fact for fact in answer["facts"] if not re.search(rf"(?<!\w){re.escape(fact)}(?!\w)", text)]
    value = 1 - len(missing) / len(answer["facts"])
    if not text.endswith(".") or re.search(r"[.!?]\s", text):
        return Score.wrong("not one whole sentence", value / 2)
    if len(text.split()) > answer["longest"]:
        return Score.wrong(f"longer than {answer['longest']} words", value / 2)
    return Score.wrong(f"facts missing: {missing}", value) if missing else Score.right()
