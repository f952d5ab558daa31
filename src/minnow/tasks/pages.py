"""Pages of the encyclopaedia: a short one that holds every fact, and a long one for open-ended writing."""

from __future__ import annotations

import re
from random import Random
from typing import Any

from minnow.tasks.encyclopaedia import COLOURS, Entity
from minnow.tasks.extraction import ITEMS
from minnow.tasks.names import person_name, place_name
from minnow.tasks.tools import sentences
from minnow.tasks.types import Draft, Score, Split

SHORT_LENGTH = (3, 6)  # sentences
LONG_LENGTH = (8, 36)
_GOES_ON = 0.9  # chance of another sentence once a long page has its fewest: its end is never certain
LONG_KINDS = ("town", "person", "company")
_SLACK = 3  # sentences a page may be longer or shorter than those trained on
_LONGEST_SENTENCE = 24  # words

# The first sentence begins with the name; within each sentence the paraphrases say the same.
_FACTS: dict[str, tuple[tuple[str, ...], ...]] = {
    "province": (
        ("{name} is a province.",),
        ("The capital is {capital}.", "Its capital is {capital}."),
        ("It is ruled by {ruler}.", "The ruler is {ruler}."),
    ),
    "town": (
        ("{name} is a town in the province of {province}.",),
        ("The river {river} runs through {name}.", "It lies on the river {river}."),
        ("It was founded by {founder} in {year}.", "The founder was {founder} in {year}."),
        (
            "Its main export is {export}, and the {export} of {name} are well known.",
            "The town exports {export}, and its {export} are sold everywhere.",
        ),
    ),
    "person": (
        ("{name} is a {profession}.",),
        ("The {profession} was born in {birthplace}.", "{name} was born in {birthplace}."),
        ("The {profession} works for {employer}.", "{name} works for {employer}."),
    ),
    "company": (
        ("{name} is a company based in {seat}.",),
        (
            "It makes {product}, and the {product} of {name} are well known.",
            "The company makes {product}, and its {product} are sold everywhere.",
        ),
        ("It is led by {head}.", "The head is {head}."),
    ),
    "river": (
        ("{name} is a river in the province of {province}.",),
        ("It is {length} miles long.", "The length is {length} miles."),
        ("It flows into lake {lake}.", "The river flows into lake {lake}."),
    ),
    "plant": (
        ("{name} is a plant in the province of {province}.",),
        (
            "Its flowers are {colour}, and its seeds are {colour} too.",
            "The plant has {colour} flowers and {colour} seeds.",
        ),
        (
            "It is used to make {use}, and the {use} are well known.",
            "The plant is used to make {use}, and its {use} are sold everywhere.",
        ),
    ),
}
_ASIDES = ("It is well known.", "Many visitors come every year.", "There are many stories about it.")
_LONG: dict[str, tuple[str, ...]] = {
    "town": (
        "Its districts are {place1}, {place2} and {place3}.",
        "The main street is {place1} Street.",
        "The festival of {place1} is held in {month}.",
        "The bridge was built by {person1} in {year}.",
        "The market sells {good1} and {good2}.",
        "The school was opened by {person1} in {year}.",
        "The hill of {place1} stands north of the town.",
        "About {number} families live there.",
        "The road to {place1} is {number} miles long.",
        "The inn is named after {person1}.",
        "A statue of {person1} stands in the square.",
        "The town hall is painted {colour}.",
    ),
    "person": (
        "The family moved to {place1} in {year}.",
        "The first teacher was {person1}.",
        "A close friend was {person1} of {place1}.",
        "In {year} the house in {place1} was sold.",
        "The wedding with {person1} was held in {month}.",
        "The children are {person1} and {person2}.",
        "A book about the journey to {place1} came out in {year}.",
        "The favourite colour is {colour}.",
        "The shop in {place1} is famous for {good1}.",
        "The prize of {place1} was won in {year}.",
        "A letter to {person1} is kept in {place1}.",
        "About {number} letters were found.",
    ),
    "company": (
        "It was founded by {person1} in {year}.",
        "The first workshop was in {place1}.",
        "Other workshops are in {place1}, {place2} and {place3}.",
        "About {number} people work there.",
        "The company buys {good1} from {place1}.",
        "It sells to {place1} and {place2}.",
        "The sign over the door is {colour}.",
        "In {year} the company bought {place1} Works.",
        "The oldest worker is {person1}.",
        "The yearly fair is held in {month}.",
        "A new house was built by {person1} in {year}.",
        "The carts carry {good1} and {good2}.",
    ),
}
_MONTHS = ("January", "March", "April", "May", "June", "July", "August", "September", "October", "December")


def short_page(entity: Entity, rng: Random) -> str:
    """Three to six sentences; every fact is in the first four."""
    parts = [rng.choice(choices).format(name=entity.name, **entity.facts) for choices in _FACTS[entity.kind]]
    if rng.random() < 0.3:
        parts.append(rng.choice(_ASIDES))
    return " ".join(parts)


def long_page(entity: Entity, rng: Random) -> str:
    """Eight to thirty-six sentences, no two alike; names in it belong to the entity's split."""
    parts = [rng.choice(choices).format(name=entity.name, **entity.facts) for choices in _FACTS[entity.kind]]
    count = LONG_LENGTH[0]
    while count < LONG_LENGTH[1] and rng.random() < _GOES_ON:
        count += 1
    templates = _LONG[entity.kind]
    while len(parts) < count:
        # Every sentence once, then those with a name again and again, each time with another name.
        new = [template.format_map(_Invented(rng, entity.split)) for template in rng.sample(templates, len(templates))]
        parts += [sentence for sentence in new if sentence not in parts]
        templates = tuple(template for template in templates if "{p" in template)
    return " ".join(parts[:count])


class _Invented(dict[str, str]):
    """Values for the slots of a long page, made up when a template asks for them."""

    def __init__(self, rng: Random, split: Split) -> None:
        super().__init__()
        self._rng, self._split = rng, split

    def __missing__(self, slot: str) -> str:
        rng, kind = self._rng, slot.rstrip("123")
        if kind == "place":
            return place_name(rng, self._split)
        if kind == "person":
            return person_name(rng, self._split)
        if kind == "number":
            return str(rng.randint(20, 900))
        if kind == "year":
            return str(rng.randint(1500, 1999))
        return rng.choice({"good": ITEMS, "colour": COLOURS, "month": _MONTHS}[kind])


def page_draft(entity: Entity, rng: Random, long: bool) -> Draft:
    """Ask for the page about ``entity``, short or long."""
    text = long_page(entity, rng) if long else short_page(entity, rng)
    low, high = LONG_LENGTH if long else SHORT_LENGTH
    answer = {"title": entity.name, "sentences": [max(2, low - _SLACK), high + _SLACK]}
    prompt = f"Write a long page about {entity.name}." if long else f"Write the page about {entity.name}."
    return Draft.plain(prompt, text, answer)


def score(answer: dict[str, Any], text: str) -> Score:
    """Form only, since nobody can know the facts of a page never seen: ended, on the subject, no repeats, fair length.

    Value is the share of sentences that are well formed and new, times how near the length is, halved for a page that
    does not end or does not begin with the name.
    """
    text = text.strip()
    if not text:
        return Score.wrong("empty")
    parts, (low, high) = sentences(text), answer["sentences"]
    good = len({part for part in parts if _well_formed(part)})
    value = good / len(parts) * min(1.0, len(parts) / low, high / len(parts))
    reasons = []
    if not text.endswith("."):
        value /= 2
        reasons.append("does not end with a full stop")
    if not re.match(rf"{re.escape(answer['title'])}\b", text):
        value /= 2
        reasons.append(f"does not start with {answer['title']}")
    if len(set(parts)) < len(parts):
        reasons.append("repeats a sentence")
    if not all(map(_well_formed, parts)):
        reasons.append("a sentence is not well formed")
    if not low <= len(parts) <= high:
        reasons.append(f"{len(parts)} sentences, wanted {low} to {high}")
    return Score.wrong("; ".join(reasons), value) if reasons else Score.right()


def _well_formed(sentence: str) -> bool:
    words = sentence.split()
    return 3 <= len(words) <= _LONGEST_SENTENCE and re.fullmatch(r"[A-Z][A-Za-z0-9 ,']*\.", sentence) is not None
