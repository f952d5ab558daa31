"""Prompts out of files, and sets in plain English on which models fall into loops: long lists, puzzles, open endings.

The sets are made here from a seed, so that a measurement needs no download and is the same everywhere. Lists are what a model
without the knowledge fills with the same item over and over; puzzles what a small reasoner goes round in circles on
(arXiv 2512.12895); stories and essays run long without a natural end.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise, permutations, product
from pathlib import Path
from random import Random
from typing import Any

from minnow.data.table import read_rows
from minnow.errors import UserError
from minnow.tasks import Example
from minnow.tasks.given import KINDS, Given, verifier_for

PROMPTS = 200
"""Prompts of a set, unless told otherwise."""


def _parts(text: str) -> tuple[str, ...]:
    return tuple(text.split("|"))


_KINDS = _parts(
    "animals|birds|fish|insects|mammals|reptiles|dog breeds|trees|flowers|mushrooms|fruits|vegetables|herbs and spices|"
    "cheeses|kinds of bread|desserts|soups|pasta shapes|drinks|rivers|mountains|lakes|islands|deserts|capital cities|"
    "countries|cities in Japan|cities in Brazil|towns in France|villages in Wales|volcanoes|national parks|painters|"
    "composers|poets|novelists|philosophers|mathematicians|physicists|chemists|explorers|inventors|queens and kings|"
    "presidents and prime ministers|novels|operas|symphonies|films from before 1970|board games|card games|sports|"
    "musical instruments|dances|languages|alphabets and scripts|currencies|gods of Greek myth|figures of Norse myth|"
    "constellations|moons of the solar system|chemical elements|minerals|gemstones|bones of the human body|"
    "muscles of the human body|diseases|medicines|programming languages|file formats|mathematical theorems|"
    "tools of a carpenter|kitchen utensils|kinds of cloth|colours|hats|knots|sailing ships|locomotives|bridges|"
    "castles|museums|newspapers|universities|saints|Roman emperors|battles|treaties"
)
_COUNTS = (40, 50, 60, 75, 80, 100, 120, 150)
_LISTS = (
    "List {n} {things}, each only once.",
    "Name {n} {things}. Number them.",
    "Write down {n} different {things}, one per line.",
    "I need {n} {things}. Give me the whole list, without repeating any.",
    "Give {n} {things} in alphabetical order.",
)
_CLOSED = _parts(
    "all the countries of Africa with their capitals|all the countries of Asia with their capitals|the 50 states of the "
    "USA with the year each joined|the 88 modern constellations|the 118 chemical elements in order with their "
    "symbols|the first 151 Pokémon by number|the winners of the football World Cup by year|the plays of Shakespeare in "
    "the order they were written|the kings and queens of England since 1066|the popes of the 20th and 19th centuries|"
    "all the departments of France with their numbers|all the prefectures of Japan|the books of the Bible in order|"
    "the episodes of the first five seasons of The Simpsons|the prime numbers below 1000|the square numbers up to 10000|"
    "the first 60 Fibonacci numbers|the first 80 digits of pi, one per line|the Nobel laureates in literature by year|"
    "the Roman emperors in order with their reigns|the moons of Saturn|the bones of the human hand and arm|"
    "the stations of the London Underground's Central line|the tracks of every Beatles album|the amino acids with their "
    "letters|the letters of the Greek, Hebrew and Cyrillic alphabets|the Olympic host cities by year|the presidents of "
    "France, Germany and Italy since 1950|the numbers from 1 to 200 in words|the dates of every Friday in 2027"
)


def _enumerations(rng: Random) -> Iterator[tuple[str, str]]:
    for closed in rng.sample(_CLOSED, len(_CLOSED)):
        yield "closed list", rng.choice(("List {}.", "Write down {}, one per line.", "What are {}?")).format(closed)
    while True:
        for things in rng.sample(_KINDS, len(_KINDS)):
            yield "open list", rng.choice(_LISTS).format(n=rng.choice(_COUNTS), things=things)


def _reasoning(rng: Random) -> Iterator[tuple[str, str]]:
    while True:
        for task, draw in _PUZZLES.items():
            yield task, draw(rng)


def _product(rng: Random) -> str:
    first, second = rng.randrange(10**6, 10**7), rng.randrange(10**5, 10**7)
    return (
        f"What is {first} × {second}? Work it out by hand, step by step, and check the result before you give it."
        if rng.random() < 0.5
        else f"Multiply {first} by {second} without a calculator. Show every partial product, then add them up."
    )


def _graph(rng: Random) -> str:
    """A star whose arms are joined back to the centre but for the one that leads to the goal."""
    arms, length = rng.randint(4, 6), rng.randint(5, 8)
    labels = rng.sample(range(10, 100), 1 + arms * length)
    centre, rest = labels[0], labels[1:]
    paths = [[centre, *rest[arm * length : (arm + 1) * length]] for arm in range(arms)]
    edges = [edge for path in paths for edge in pairwise(path)] + [(path[-1], centre) for path in paths[1:]]
    rng.shuffle(edges)
    shown = ", ".join(f"{a} to {b}" for a, b in edges)
    return (
        f"One-way streets lead from {shown}. Find a way from crossing {centre} to crossing {paths[0][-1]}, thinking aloud, "
        "and then give the crossings in order."
    )


_PEOPLE = ("Anna", "Ben", "Clara", "David", "Emma", "Felix", "Grace", "Henry", "Irene", "Jack")
_THINGS = {
    "drinks": ("tea", "coffee", "milk", "juice", "water", "cocoa"),
    "keeps": ("a cat", "a dog", "a parrot", "a rabbit", "a goldfish", "a tortoise"),
    "plays": ("chess", "football", "the violin", "tennis", "the piano", "cards"),
}


def _grid(rng: Random) -> str:
    """Four neighbours, three attributes; clues are added until one arrangement is left, which is checked."""
    values = {verb: rng.sample(things, 4) for verb, things in _THINGS.items()}
    verbs = list(values)
    left = list(product(permutations(range(4)), repeat=3))  # of each attribute, the value in every house
    truth = rng.choice(left)
    clues: list[str] = []
    while len(left) > 1:
        one, other = rng.sample(range(3), 2)
        house, place = rng.randrange(4), rng.randrange(4)
        first, second = truth[one][house], truth[other][place]
        said = f"who {verbs[one]} {values[verbs[one]][first]}"
        named = f"{verbs[other]} {values[verbs[other]][second]}"
        if house == place:
            clue = f"the person {said} also {named}"
            kept = [w for w in left if w[one].index(first) == w[other].index(second)]
        elif abs(house - place) == 1:
            clue = f"the person {said} lives next to the one who {named}"
            kept = [w for w in left if abs(w[one].index(first) - w[other].index(second)) == 1]
        else:
            clue = f"the person {said} does not live next to the one who {named}, and is not the same person"
            kept = [w for w in left if abs(w[one].index(first) - w[other].index(second)) > 1]
        if len(kept) == len(left):
            # Clues about neighbours alone never tell left from right: one that tells nothing new names a house instead.
            clue = f"the person {said} lives in house {house + 1}"
            kept = [w for w in left if w[one][house] == first]
        if len(kept) < len(left):
            clues.append(clue)
            left = kept
    rng.shuffle(clues)
    row = ", ".join(f"{name} in house {place + 1}" for place, name in enumerate(rng.sample(_PEOPLE, 4)))
    facts = " ".join(f"{clue[0].upper()}{clue[1:]}." for clue in clues)
    things = "; ".join(f"one each {verb} {', '.join(sorted(values[verb]))}" for verb in verbs)
    return (
        f"Four neighbours live in a row: {row}. Of them {things}. {facts} "
        "Who drinks, keeps and plays what? Reason step by step."
    )


def _cups(rng: Random) -> str:
    cups, swaps = rng.randint(7, 9), rng.randint(25, 40)
    moves = []
    for _ in range(swaps):
        first, second = rng.sample(range(1, cups + 1), 2)
        moves.append(f"{first} and {second}")
    return (
        f"{cups} cups stand in a row, numbered by place from 1 to {cups}; a ball is under the cup in place "
        f"{rng.randint(1, cups)}. The cups in these places are swapped, one pair after another: {'; '.join(moves)}. "
        "Where is the ball after every swap, and at the end?"
    )


def _sequence(rng: Random) -> str:
    a, b, modulus, steps = rng.randint(11, 97), rng.randint(101, 997), rng.randint(1009, 9973), rng.randint(25, 40)
    return (
        f"A sequence begins with {rng.randint(2, modulus - 1)}. Each next number is the remainder when {a} times the one "
        f"before plus {b} is divided by {modulus}. Work out number {steps} of the sequence, writing down every one before it."
    )


_PUZZLES: dict[str, Callable[[Random], str]] = {
    "product": _product,
    "graph": _graph,
    "logic grid": _grid,
    "cups": _cups,
    "sequence": _sequence,
}

_WHO = _parts(
    "a lighthouse keeper|a retired clockmaker|twins who have never met|a ship's cook|a village doctor|a young cartographer|"
    "an old piano teacher|the last speaker of a language|a night-train conductor|a beekeeper|a translator at a court|"
    "a bridge builder|a museum guard|a runaway apprentice|a widow who inherits an inn|a radio operator at the pole"
)
_WHAT = _parts(
    "finds a letter that was never sent|loses a bet that cannot be paid|hears a sound that nobody else hears|is asked to "
    "keep a secret for a year|discovers a room that is on no plan|has to choose between two promises|begins a journey in the "
    "wrong direction|receives a visitor from long ago|must repair something nobody understands|dreams the same dream each night"
)
_TOPICS = _parts(
    "why cities grow where they do|what makes a good teacher|the history of paper|how the tides work and why they matter|"
    "whether memory can be trusted|the use of silence in music|what gardens say about those who keep them|the price of "
    "convenience|how maps change the way we see|the art of getting lost|trust between strangers|why we tell stories|"
    "the future of small farms|what machines should not decide|the meaning of home|rivers as borders and as roads|"
    "boredom and what comes of it|the ethics of zoos|how bread shaped civilisations|sleep and why we need it|"
    "the beauty of repetition in art|what makes a law just|waiting|the sea in literature|what children know"
)
_STORIES = (
    "Write a long story about {who} who {what}.",
    "Tell the story of {who} who {what}, in as much detail as you can.",
    "Write the first chapter of a novel in which {who} {what}.",
)
_ESSAYS = (
    "Write an essay of at least 1,500 words about {topic}.",
    "Explain at length, with many examples: {topic}.",
    "Think aloud about {topic}, for as long as it takes.",
)
_TALKS = (
    "Write a long dialogue between {who} and {other} about {topic}.",
    "Write a poem of at least thirty stanzas about {topic}, as {who} would have written it.",
    "Write the diary of {who} for one month. On the first day the writer thinks about {topic}.",
)


def _open_ended(rng: Random) -> Iterator[tuple[str, str]]:
    while True:
        yield "story", rng.choice(_STORIES).format(who=rng.choice(_WHO), what=rng.choice(_WHAT))
        yield "essay", rng.choice(_ESSAYS).format(topic=rng.choice(_TOPICS))
        who, other = rng.sample(_WHO, 2)
        yield "long form", rng.choice(_TALKS).format(who=who, other=other, topic=rng.choice(_TOPICS))


SETS: dict[str, Callable[[Random], Iterator[tuple[str, str]]]] = {
    "enumeration": _enumerations,
    "reasoning": _reasoning,
    "open-ended": _open_ended,
}
"""Prompt sets by name; each yields (task, prompt) without end, of which the different ones are taken."""

_TRIES = 1000  # draws without a new prompt after which a set has no more


def prompt_set(name: str, count: int = PROMPTS, seed: int = 0) -> list[Example]:
    """``count`` different prompts of a set (a key of ``SETS``); a longer request begins with those of a shorter one.

    Raises:
        UserError: the set does not hold that many.
    """
    found: dict[str, str] = {}
    tries = 0
    for task, prompt in SETS[name](Random(f"{seed}/{name}")):
        tries = 0 if prompt not in found else tries + 1
        found.setdefault(prompt, task)
        if len(found) == count:
            break
        if tries == _TRIES:
            raise UserError(
                f"the prompts {name!r} hold {len(found)} different ones, not {count}; ask for fewer with --n"
            )
    return [
        Example(f"{name}-{number}", task, "held_out", [{"role": "user", "content": prompt}], [], Given("rules"))
        for number, (prompt, task) in enumerate(found.items(), start=1)
    ]


def read_prompts(file: Path, raw: bool = False) -> list[Example]:
    """Prompts from rows (:func:`minnow.data.table.read_rows`) with ``prompt`` (a text) or ``messages`` (and ``tools``).

    ``task`` groups them; ``id`` (any text or number, each once) names them, by default the row's number. A row with an
    ``answer`` may say in ``verifier`` what compares it (a key of :data:`minnow.tasks.given.KINDS`); by default that is
    ``number`` for a number, ``json`` for an object and ``exact`` for a text.

    Raises:
        UserError: the file is missing, empty or malformed; or ``raw`` is asked for rows of messages.
    """
    examples: dict[str, Example] = {}
    for number, place, row in read_rows(file):
        prompt, messages = row.get("prompt"), row.get("messages")
        if isinstance(prompt, str) and prompt:
            messages = [{"role": "user", "content": prompt}]
        elif raw:
            raise UserError(f"{place} has no text in 'prompt', which --raw continues; leave --raw out for messages")
        elif not (isinstance(messages, list) and messages and all(isinstance(each, dict) for each in messages)):
            raise UserError(f"{place} has neither text in 'prompt' nor a list in 'messages'; write one of them")
        elif not isinstance(messages[-1].get("content"), str):
            raise UserError(f"{place} ends with a message whose content is no text; write one")
        name = str(row.get("id", f"line-{number}"))
        if name in examples:
            raise UserError(f"{place} has the id {name!r} of an earlier line; give each prompt its own")
        task = str(row.get("task", "prompts"))
        examples[name] = Example(name, task, "held_out", messages, [], _given(place, row), row.get("tools"))
    return list(examples.values())


def _given(place: str, row: dict[str, Any]) -> Given:
    answer = row.get("answer")
    verifier = row.get("verifier") or verifier_for(answer)
    if verifier not in KINDS:
        raise UserError(f"{place} names the verifier {verifier!r}; choose from {', '.join(KINDS)}")
    if answer is None and verifier != "rules":
        raise UserError(f"{place} names the verifier {verifier!r} and has no 'answer' to compare with; write one")
    given = Given(verifier, answer)
    try:
        KINDS[verifier](answer, "a trial")
    except Exception as error:  # whatever a verifier makes of an answer that is not of its kind
        raise UserError(f"{place}: the verifier {verifier!r} cannot take the answer {answer!r} ({error})") from error
    return given
