"""Questions of one hop or several, asked with closed book or with the search tool.

A relation has a question that takes any noun phrase and, where its value is an entity, a noun
phrase of its own, so that questions of more hops are one-hop questions about a phrase.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any, NamedTuple

from minnow.tasks.encyclopaedia import Entity
from minnow.tasks.tools import SEARCH_SCHEMA, call_turn
from minnow.tasks.types import Draft


@dataclass(frozen=True)
class Relation:
    """How one relation is asked for, what its value is called in the answer, and how to refer to it."""

    label: str
    questions: tuple[str, str]
    phrase: str = ""


RELATIONS: dict[tuple[str, str], Relation] = {
    ("province", "capital"): Relation(
        "capital", ("What is the capital of {x}?", "Which town is the capital of {x}?"), "the capital of {x}"
    ),
    ("province", "ruler"): Relation("ruler", ("Who rules {x}?", "Who is the ruler of {x}?"), "the ruler of {x}"),
    ("town", "province"): Relation(
        "province", ("In which province is {x}?", "Which province does {x} belong to?"), "the province of {x}"
    ),
    ("town", "river"): Relation(
        "river", ("What river runs through {x}?", "Which river flows through {x}?"), "the river of {x}"
    ),
    ("town", "founder"): Relation("founder", ("Who founded {x}?", "Who was the founder of {x}?"), "the founder of {x}"),
    ("town", "year"): Relation("year", ("When was {x} founded?", "In which year was {x} founded?")),
    ("town", "export"): Relation("export", ("What are the main exports of {x}?", "What does {x} export?")),
    ("person", "profession"): Relation(
        "profession", ("What is the profession of {x}?", "What does {x} do for a living?")
    ),
    ("person", "birthplace"): Relation(
        "town", ("Where was {x} born?", "In which town was {x} born?"), "the town where {x} was born"
    ),
    ("person", "employer"): Relation(
        "company", ("Which company does {x} work for?", "Who employs {x}?"), "the company that employs {x}"
    ),
    ("company", "seat"): Relation(
        "town", ("In which town is {x} based?", "Where is {x} based?"), "the town where {x} is based"
    ),
    ("company", "product"): Relation("product", ("What does {x} make?", "What is the product of {x}?")),
    ("company", "head"): Relation("head", ("Who leads {x}?", "Who is the head of {x}?"), "the head of {x}"),
    ("river", "length"): Relation("length", ("How many miles long is {x}?", "What is the length of {x} in miles?")),
    ("river", "lake"): Relation("lake", ("Which lake does {x} flow into?", "Into which lake does {x} flow?")),
    ("plant", "province"): Relation(
        "province", ("In which province does {x} grow?", "Where does {x} grow?"), "the province where {x} grows"
    ),
    ("plant", "colour"): Relation(
        "colour", ("What colour are the flowers of {x}?", "Which colour has the flower of {x}?")
    ),
    ("plant", "use"): Relation("use", ("What is {x} used to make?", "What is made of {x}?")),
}
WORDINGS = range(2)


class Question(NamedTuple):
    """``outer`` of ``subject``, or of the entity that the relations ``inner`` lead to from there."""

    subject: Entity
    inner: tuple[str, ...]
    outer: str

    @property
    def visited(self) -> list[Entity]:
        """The entities whose pages lead to the answer, in order."""
        visited = [self.subject]
        for relation in self.inner:
            visited.append(visited[-1].links[relation])
        return visited

    @property
    def last(self) -> Entity:
        """The entity whose page holds the answer."""
        return self.visited[-1]

    @property
    def gold(self) -> str:
        return self.last.facts[self.outer]

    @property
    def hops(self) -> int:
        return 1 + len(self.inner)

    def text(self, wording: int) -> str:
        about = self.subject.name
        for entity, relation in zip(self.visited, self.inner, strict=False):
            about = RELATIONS[entity.kind, relation].phrase.format(x=about)
        return RELATIONS[self.last.kind, self.outer].questions[wording].format(x=about)

    @property
    def reply(self) -> str:
        return f"The {RELATIONS[self.last.kind, self.outer].label} is {self.gold}."


def one_hop(entities: list[Entity]) -> list[Question]:
    """Every one-hop question about ``entities``."""
    return [Question(entity, (), outer) for entity in entities for outer in _relations(entity)]


def two_hop(entities: list[Entity]) -> list[Question]:
    """Every two-hop question about ``entities`` whose answer does not stand in the question."""
    found = [
        Question(entity, (inner,), outer)
        for entity in entities
        for inner in _relations(entity)
        if RELATIONS[entity.kind, inner].phrase
        for outer in _relations(entity.links[inner])
    ]
    return [question for question in found if question.gold != question.subject.name]


_BY_KIND = {kind: [name for owner, name in RELATIONS if owner == kind] for kind, _ in RELATIONS}


def chain(subject: Entity, hops: int, rng: Random) -> Question | None:
    """A random question about ``subject`` that visits ``hops`` different entities and names none of those after it.

    None where the walk comes to a dead end.
    """
    inner: list[str] = []
    visited = [subject]
    for _ in range(hops - 1):
        ways = [
            name
            for name in _relations(visited[-1])
            if RELATIONS[visited[-1].kind, name].phrase and visited[-1].links[name] not in visited
        ]
        if not ways:
            return None
        inner.append(rng.choice(ways))
        visited.append(visited[-1].links[inner[-1]])
    names = {entity.name for entity in visited}
    asked = [name for name in _relations(visited[-1]) if visited[-1].facts[name] not in names]
    return Question(subject, tuple(inner), rng.choice(asked)) if asked else None


def _relations(entity: Entity) -> list[str]:
    return _BY_KIND[entity.kind]


def closed_book(question: Question, wording: int) -> Draft:
    """The question with no tool: the answer must come from memory."""
    return Draft.plain(question.text(wording), question.reply, {"gold": question.gold, "hops": question.hops})


def with_search(question: Question, wording: int, search: Callable[[Entity], str]) -> Draft:
    """The question with the search tool: one search per hop, then the answer.

    Args:
        search: what the search tool returns for an entity's name.
    """
    visited = question.visited
    turns: list[dict[str, Any]] = []
    for entity in visited:
        turns += [call_turn("search", query=entity.name), {"role": "tool", "content": search(entity)}]
    turns.append({"role": "assistant", "content": question.reply})
    calls = [{"name": "search", "arguments": {"query": entity.name}} for entity in visited]
    answer = {"gold": question.gold, "hops": question.hops, "calls": calls}
    return Draft(question.text(wording), turns, answer, [SEARCH_SCHEMA])
