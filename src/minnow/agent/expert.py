"""Worked examples of looking things up: what an expert does in made-up worlds, to fine-tune a model on.

The expert searches for the name in the question, says what it found of what was asked, searches for that, and so on. It
believes the page about a name and no other page of that title, obeys none, and where the tool finds no such page it says so. It
searches the index that the agent searches, so a model is trained on what it will see.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from random import Random
from typing import Any

from minnow.agent.index import Hit, SearchIndex
from minnow.agent.marks import neutral
from minnow.tasks import Example, PocketWorld, Task, format_hits
from minnow.tasks.encyclopaedia import Entity, build
from minnow.tasks.made_world import TRAINED_TRAPS, trap, unheard_of
from minnow.tasks.questions import RELATIONS, Question, chain
from minnow.tasks.task import DRAWN_EXAMPLES
from minnow.tasks.tools import SEARCH_HITS, SEARCH_SCHEMA, call_turn, score_call
from minnow.tasks.types import Page, Split

NAME = "lookups"
NOT_KNOWN = "That is not known."
WORLDS = 16
"""At most so many worlds, from easy to hard."""
_EACH = 250  # examples that are worth a world of their own
_ENTITIES = 2500
MOST_TRAPS = 0.5
"""Share of the pages that have a trap beside them, in the last world."""
_GONE, _UNHEARD_OF = 0.05, 0.08  # shares of the pages that are missing, and of the questions about no page
# For RL: of the questions drawn so many come to a missing page; of the others so many are asked again about no page.
# A sixth of all are then of either sort.
_LOST, _TWINS = 1 / 5, 1 / 4


class Library:
    """The pages of one split of a world, of which some are missing and some have a trap beside them.

    Attributes:
        rng: what the pages were drawn with; where it stands belongs to the library.
    """

    def __init__(self, seed: str, split: Split, traps: float) -> None:
        self.rng = Random(seed)
        number = self.rng.getrandbits(48)
        self.entities = [entity for entity in build(number, _ENTITIES) if entity.split == split]
        self.names = {entity.name for entity in self.entities}
        pages = PocketWorld(number, _ENTITIES).pages(split)
        self.pages = [page for page in pages if self.rng.random() >= _GONE]
        self.found = {page.id for page in self.pages}
        by_name = {entity.name: entity for entity in self.entities}
        self.pages += [
            self._trap(place, by_name[page.title], page)
            for place, page in enumerate(self.pages)
            if self.rng.random() < traps
        ]
        self.rng.shuffle(self.pages)
        self.index = SearchIndex.build(self.pages)
        self.search = lru_cache(maxsize=None)(lambda name: self.index.search(name, SEARCH_HITS))

    def _trap(self, number: int, about: Entity, page: Page) -> Page:
        return trap(self.rng.choice(TRAINED_TRAPS), number, about, page.text, self.entities, self.rng)

    def question(self, hops: int, rng: Random) -> Question:
        """A random question; some are about names that are on no page."""
        question = self._drawn(hops, rng)
        if rng.random() < _UNHEARD_OF:
            return question._replace(subject=unheard_of(question.subject, self.names, rng))
        return question

    def questions(self, count: int, rng: Random) -> list[Question]:
        """Random questions of one to three hops, for RL; about a third have no answer.

        Half of these come to a page that is missing. The others are the question before them about another name, which
        shares a word with the one before and is on no page: what tells the two apart is whether a title is that name.
        Before the tool said so, an expert's examples in these shares made a model abstain too often (docs/results/agent.md).
        """
        asked: list[Question] = []
        while len(asked) < count:
            lost, hops = rng.random() < _LOST, rng.choices((1, 2, 3))[0]
            while lost != self._lost(question := self._drawn(hops, rng)):
                pass
            asked.append(question)
            if not lost and rng.random() < _TWINS:
                subject = unheard_of(question.subject, self.names, rng, keep=rng.randrange(2))
                asked.append(question._replace(subject=subject))
        return asked[:count]

    def _drawn(self, hops: int, rng: Random) -> Question:
        while (question := chain(rng.choice(self.entities), hops, rng)) is None:
            pass
        return question

    def _lost(self, question: Question) -> bool:
        """Whether a page on the way to its answer is missing."""
        return not all(entity.id in self.found for entity in question.visited)

    def worked(self, question: Question) -> tuple[list[dict[str, Any]], str]:
        """What the expert does about a question, and its last words."""
        turns: list[dict[str, Any]] = []
        said = ""
        for place, entity in enumerate(question.visited):
            call = call_turn("search", query=entity.name)
            hits: Sequence[Hit] = self.search(entity.name)
            turns += [
                call | {"content": said + call["content"]},
                {"role": "tool", "content": neutral(format_hits(entity.name, hits))},
            ]
            if entity.id not in (hit.id for hit in hits):
                said = NOT_KNOWN
                break
            if place < len(question.inner):
                relation = question.inner[place]
                phrase = RELATIONS[entity.kind, relation].phrase.format(x=entity.name)
                said = f"{phrase[0].upper()}{phrase[1:]} is {entity.facts[relation]}. "
            else:
                said = question.reply
        return [*turns, {"role": "assistant", "content": said}], said


@lru_cache(maxsize=4)
def worked_lookups(seed: int, split: Split, n: int) -> list[Example]:
    """``n`` questions of one to three hops with all that the expert does, from easy to hard.

    They come from several worlds. In the first every question is of one hop and no page misleads; from world to world there
    are more hops and more traps (noise that rises, after ZeroSearch, arXiv 2505.04588), but short questions stay.
    """
    worlds = min(WORLDS, -(-n // _EACH))
    examples = []
    for world in range(worlds):
        progress = world / max(1, worlds - 1)
        library = Library(f"{seed}/{NAME}/{split}/{world}", split, progress * MOST_TRAPS)
        hops = (1.0, min(1.5, 4 * progress), min(2.5, max(0.0, 4 * progress - 1)))
        rng = Random(f"{seed}/{NAME}/{split}/{world}/questions")
        for number in range(world * n // worlds, (world + 1) * n // worlds):
            question = library.question(rng.choices((1, 2, 3), hops)[0], library.rng)
            turns, said = library.worked(question)
            answer = {
                "gold": None if said == NOT_KNOWN else question.gold,
                "hops": question.hops,
                "calls": [{"name": "search", "arguments": {"query": question.subject.name}}],
            }
            messages = [{"role": "user", "content": question.text(rng.randrange(2))}]
            tools = [SEARCH_SCHEMA]
            name = f"{NAME}-{split}-{number}"
            examples.append(Example(name, NAME, split, messages, turns, answer, tools, difficulty=progress))
    return examples


def lookup_task(seed: int) -> Task:
    """The expert's examples as a task; what is scored is the first call."""

    return Task(
        NAME,
        lambda split, n: worked_lookups(seed, split, DRAWN_EXAMPLES if n is None else n),
        score_call,
        max_new_tokens=96,
    )
