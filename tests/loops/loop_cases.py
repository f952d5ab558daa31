"""Labelled synthetic outputs: what loops, how, since which token; and repetitive text that does not loop.

Texts become ids by a toy tokenizer in the manner of Minnow's: digits stay single, words of more than four letters
fall into pieces, so that names share pieces as under a small byte-pair vocabulary.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

PIECE = re.compile(r"\d| ?[^\W\d_]{1,4}|[^\w]|_")
SYLLABLES = [c + v for c in "bdfghjklmnprstvwz" for v in ("a", "e", "i", "o", "u", "ar", "en", "il", "or", "un")]
COMMON = re.findall(
    r"\w+",
    "the a of and to in is was it for on as with at by from river town old new stone bridge market mill long north "
    "south people trade wood small great first year house built road hill field grain salt ship king council near "
    "many known most after before while then also still never every both between under over through because",
)


class Vocabulary:
    def __init__(self) -> None:
        self.ids: dict[str, int] = {}

    def encode(self, text: str) -> list[int]:
        return [self.ids.setdefault(piece, len(self.ids) + 10) for piece in PIECE.findall(text)]


@dataclass(frozen=True)
class Case:
    kind: str  # a Loop kind for a loop, "" for none
    source: str
    tokens: list[int]
    onset: int | None = None
    period: int | None = None
    text: str = ""


def name(rng: random.Random) -> str:
    return "".join(rng.choice(SYLLABLES) for _ in range(rng.randint(2, 4))).capitalize()


def names(rng: random.Random, count: int) -> list[str]:
    found: dict[str, None] = {}
    while len(found) < count:
        found[name(rng)] = None
    return list(found)


def prose(rng: random.Random, words: int) -> str:
    out: list[str] = []
    while len(out) < words:
        sentence = [rng.choice(COMMON) if rng.random() < 0.8 else name(rng) for _ in range(rng.randint(6, 15))]
        out += [sentence[0].capitalize(), *sentence[1:-1], sentence[-1] + "."]
    return " ".join(out)


# --- loops, built over ids so that onset and period are exact ---


def block(rng: random.Random, period: int) -> list[int]:
    """A primitive block: its first token occurs once in it."""
    return [1000, *(rng.randint(1001, 1001 + max(8, period // 2)) for _ in range(period - 1))]


def exact(rng: random.Random, period: int) -> Case:
    prefix = [rng.randint(10, 900) for _ in range(rng.randint(0, 200))]
    covered = max(64, 5 * period) + rng.randint(0, 2 * period)
    unit = block(rng, period)
    tokens = prefix + (unit * (covered // period + 1))[:covered]
    kind = "token" if period == 1 else "period"
    return Case(kind, f"exact period {period}", tokens, len(prefix) + period, period)


def near_copy(rng: random.Random, period: int, edit_rate: float, moves: bool) -> Case:
    """Copies of one block in which single tokens are replaced (or, with ``moves``, also put in or left out)."""
    prefix = [rng.randint(10, 900) for _ in range(rng.randint(0, 150))]
    unit = block(rng, period)
    tokens = list(prefix)
    for _ in range(max(8, 300 // period)):
        for token in unit:
            change = rng.random() < edit_rate / 2  # two copies are compared: each carries half
            action = rng.choice(["replace", "insert", "drop"]) if moves else "replace"
            if not change:
                tokens.append(token)
            elif action == "replace":
                tokens.append(rng.randint(1001, 1400))
            elif action == "insert":
                tokens += [token, rng.randint(1001, 1400)]
    tokens += unit[: min(8, period)]
    label = "moves" if moves else "replacements"
    return Case("near_copy", f"near copy, {label}", tokens, len(prefix) + period, period)


def counter(rng: random.Random) -> Case:
    phrase = " ".join(rng.choice(COMMON) for _ in range(rng.randint(14, 24)))
    text = prose(rng, 30) + "".join(f"\n{i}. {phrase}" for i in range(1, rng.randint(22, 40)))
    return Case("near_copy", "counter loop", Vocabulary().encode(text), text=text)


def template(rng: random.Random) -> Case:
    few = names(rng, rng.randint(2, 4))
    text = prose(rng, 20) + " "
    for _ in range(rng.randint(130, 200)):
        text += rng.choice(few) + ", "
    text = text.rstrip()
    return Case("template", "few names in changing order", Vocabulary().encode(text), text=text)


def sentence_shuffle(rng: random.Random) -> Case:
    few = [prose(rng, 9) for _ in range(3)]
    text = prose(rng, 20) + " " + " ".join(rng.choice(few) for _ in range(60))
    return Case("template", "few sentences in changing order", Vocabulary().encode(text), text=text)


def cycling_walk(rng: random.Random) -> Case:
    places = names(rng, rng.randint(2, 4))
    text = (
        "Start at "
        + name(rng)
        + "."
        + "".join(f" Go from {places[i % len(places)]} to {places[(i + 1) % len(places)]}." for i in range(40))
    )
    return Case("period", "walk in a circle", Vocabulary().encode(text), text=text)


# --- outputs that repeat much and do not loop ---


def code(rng: random.Random) -> str:
    fields = [name(rng).lower() for _ in range(rng.randint(5, 14))]
    text = "class Record:\n    def __init__(self, " + ", ".join(fields) + "):\n"
    text += "".join(f"        self.{field} = {field}\n" for field in fields)
    for field in fields:
        text += f"\n    def get_{field}(self):\n        return self.{field}\n"
    return text


def unit_tests(rng: random.Random) -> str:
    return "".join(
        f"def test_add_{i}():\n    assert add({rng.randint(0, 999)}, {rng.randint(0, 99)}) == {rng.randint(0, 999)}\n\n"
        for i in range(rng.randint(6, 30))
    )


def json_array(rng: random.Random) -> str:
    rows = [
        f'{{"id": {i}, "name": "{name(rng)}", "age": {rng.randint(10, 99)}, "active": {rng.choice(["true", "false"])}}}'
        for i in range(rng.randint(8, 50))
    ]
    return "[" + ",\n ".join(rows) + "]"


def table(rng: random.Random) -> str:
    head = "| name | height | weight |\n| --- | --- | --- |\n"
    return head + "".join(
        f"| {name(rng)} | {rng.randint(100, 2000)} | {rng.random():.3f} |\n" for _ in range(rng.randint(8, 40))
    )


def number_table(rng: random.Random) -> str:
    return "".join(f"{i}\t{rng.randint(0, 9999)}\t{rng.randint(0, 9999)}\n" for i in range(rng.randint(10, 60)))


def numbered_list(rng: random.Random) -> str:
    return "".join(f"{i}. The town of {name(rng)}\n" for i in range(1, rng.randint(12, 60)))


def distinct_names(rng: random.Random) -> str:
    return "The towns are " + ", ".join(names(rng, rng.randint(20, 60))) + "."


def shared_prefix(rng: random.Random) -> str:
    region = name(rng)
    return "".join(
        f"- {town} is a town in the province of {region} on the river {name(rng)} with {rng.randint(9, 99999)} folk.\n"
        for town in names(rng, rng.randint(10, 25))
    )


def song(rng: random.Random) -> str:
    chorus = prose(rng, 24)
    parts = [part for _ in range(rng.randint(3, 5)) for part in (prose(rng, 30), chorus)]
    return "\n\n".join([*parts, prose(rng, 8)])


def digits(rng: random.Random) -> str:
    return "1 / 7 = 0." + "142857" * 6 + rng.choice(["", "1", "14", "142"])


def zeros(rng: random.Random) -> str:
    return prose(rng, 30) + " " + str(10 ** rng.randint(20, 40))


def divider(rng: random.Random) -> str:
    return prose(rng, 40) + "\n" + rng.choice("-=*_") * rng.randint(10, 40) + "\n" + prose(rng, 20)


def equal_rows(rng: random.Random) -> str:
    return prose(rng, 20) + "\n" + "status: ok\n" * rng.randint(3, 8)


def long_sum(rng: random.Random) -> str:
    total = 0
    text = ""
    for step in range(1, rng.randint(10, 36)):
        added = rng.randint(10, 999)
        text += f"Step {step}: now add {added}. {total} + {added} = {total + added}. "
        total += added
    return text + f"The answer is {total}."


def small_sum(rng: random.Random) -> str:
    total = 0
    text = ""
    for _ in range(rng.randint(20, 60)):
        added = rng.randint(1, 9)
        text += f"{total} + {added} = {total + added}. "
        total += added
    return text


def column_sum(rng: random.Random) -> str:
    carry = 0
    text = ""
    for _ in range(rng.randint(10, 30)):
        a, b = rng.randint(0, 9), rng.randint(0, 9)
        total = a + b + carry
        text += f"{a} plus {b} plus carry {carry} is {total}, write {total % 10}, carry {total // 10}.\n"
        carry = total // 10
    return text


def long_walk(rng: random.Random) -> str:
    places = names(rng, rng.randint(12, 30))
    path = [rng.choice(places) for _ in range(rng.randint(15, 45))]
    return "".join(f"Go from {a} to {b}. " for a, b in pairwise(path))


def restated(rng: random.Random) -> str:
    draft = prose(rng, 120)
    return draft + "\n\nHere is the whole text again:\n\n" + draft


def checks(rng: random.Random) -> str:
    claim = prose(rng, 12)
    return prose(rng, 50) + f" Wait, let me check. {claim} So far so good. Let me check again. {claim} " + prose(rng, 6)


def recovered(rng: random.Random) -> str:
    return prose(rng, 20) + " " + "and the river was old " * 30 + ". " + prose(rng, 25)


def repeated_then_ended(rng: random.Random) -> str:
    return prose(rng, 20) + " " + "and the river was old " * 30 + "<|end|>"


def multiplication_table(rng: random.Random) -> str:
    n = rng.randint(2, 19)
    return "".join(f"{i} times {n} is {i * n}\n" for i in range(1, rng.randint(12, 31)))


def calendar(rng: random.Random) -> str:
    return "".join(
        f"2026-{month:02d}-{day:02d}: {rng.choice(['rain', 'sun', 'wind', 'snow'])}\n"
        for month in range(1, 4)
        for day in range(1, rng.randint(12, 28))
    )


def matrix(rng: random.Random) -> str:
    size = rng.randint(4, 9)
    return "".join("[" + ", ".join(str(rng.randint(0, 9)) for _ in range(size)) + "]\n" for _ in range(size))


NEGATIVES: list[Callable[[random.Random], str]] = [
    code, unit_tests, json_array, table, number_table, numbered_list, distinct_names, shared_prefix, song, digits,
    zeros, divider, equal_rows, long_sum, small_sum, column_sum, long_walk, restated, checks, recovered, repeated_then_ended,
    multiplication_table, calendar, matrix,
]  # fmt: skip


def labelled_cases(seed: int = 0, each: int = 12) -> list[Case]:
    rng = random.Random(seed)
    cases = [exact(rng, period) for period in (1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377) for _ in range(each)]
    for period in (6, 12, 20, 30, 60):
        for rate in (0.04, 0.08):
            for moves in (False, True):
                cases += [near_copy(rng, period, rate, moves) for _ in range(max(1, each // 3))]
    for make in (counter, template, sentence_shuffle, cycling_walk):
        cases += [make(rng) for _ in range(each)]
    for negative in NEGATIVES:
        for _ in range(each):
            text = negative(rng)
            cases.append(Case("", negative.__name__, Vocabulary().encode(text), text=text))
    return cases
