"""The pocket world: one seed makes the encyclopaedia, the pre-training text and the examples of every task."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from random import Random

from minnow.errors import UserError
from minnow.tasks import arithmetic, encyclopaedia, enumerations, extraction, pages, questions, summaries, tools, walks
from minnow.tasks.encyclopaedia import Entity
from minnow.tasks.task import DRAWN_EXAMPLES, Task, distinct, register
from minnow.tasks.types import SPLITS, Draft, Example, Page, Score, Split

TASKS = ("arithmetic", "walk", "enumeration", "page", "question", "search", "extraction", "calculator", "summary")
# Kinds (a task, or its long form) in turn; pages come twice, the most open-ended of them.
LOOP_PRONE = ("long page", "enumeration", "long page", "long walk", "long arithmetic")

# Shares of the pre-training text by documents; long pages and lists are several times the length of the rest.
_DOCUMENTS = {
    "page": 6,
    "long page": 4,
    "reading": 13,
    "enumeration": 24,
    "arithmetic": 17,
    "walk": 2,
    "search": 12,
    "extraction": 12,
    "calculator": 2,
    "summary": 8,
}
_SCORES: dict[str, Callable[..., Score]] = {
    "arithmetic": arithmetic.score,
    "walk": walks.score,
    "enumeration": enumerations.score,
    "page": pages.score,
    "question": tools.score_answer,
    "search": tools.score_answer,
    "extraction": extraction.score,
    "calculator": tools.score_answer,
    "summary": summaries.score,
}
# What one answer is worth: of the tasks with tools, the call it makes; the whole conversation is the agent's business.
_FIRST_TURN = _SCORES | {"search": tools.score_call, "calculator": tools.score_call}
for _name, _score in _FIRST_TURN.items():
    register(_name, _score, built_in=True)


def verify(example: Example, text: str) -> Score:
    """Score the assistant's last turn for ``example``; :func:`minnow.tasks.judge` scores its first.

    They differ for the tasks with tools, whose last turn must be the answer and whose first is a call. Open tasks need
    nothing from ``example`` that a model could not know: they are scored on form.

    Args:
        text: raw text with special tokens kept.
    """
    return _SCORES[example.task](example.answer, text.removesuffix("<|im_end|>").strip())


@dataclass(frozen=True)
class _Shelf:
    """What one split holds: its entities, and the page a search for a name finds after the page about it."""

    entities: list[Entity]
    second_hits: dict[str, Page]


class PocketWorld:
    """A seeded world of fictional entities and small tasks.

    Every method is deterministic in the seed, and the first items of a longer request are those of
    a shorter one. The held-out split shares no entity, invented name or drawn prompt with training
    text and training examples.
    """

    TASKS = TASKS

    def __init__(self, seed: int, entities: int = 6000) -> None:
        """
        Args:
            entities: how many entities have pages; rounded down to whole provinces of 25.

        Raises:
            UserError: fewer entities than both splits need.
        """
        self.seed = seed
        self._entities = encyclopaedia.build(seed, entities)
        rng = Random(f"{seed}/pages")
        self._pages = {e.name: Page(e.id, e.name, pages.short_page(e, rng)) for e in self._entities}
        self._shelves = {split: self._shelf(split) for split in SPLITS}

    def pages(self, split: Split | None = None) -> list[Page]:
        """The encyclopaedia; with ``split``, only the pages about that split's entities."""
        return [self._pages[e.name] for e in self._entities if split is None or e.split == split]

    def documents(self, n: int) -> Iterator[str]:
        """``n`` pre-training documents of the training split, without chat tokens: pages, lists and worked tasks."""
        rng = Random(f"{self.seed}/documents")
        kinds = rng.choices(list(_DOCUMENTS), list(_DOCUMENTS.values()), k=n)
        streams = {kind: self._documents(kind) for kind in _DOCUMENTS}
        return (next(streams[kind]) for kind in kinds)

    def examples(self, task: str, split: Split, n: int) -> list[Example]:
        """The first ``n`` examples of one task; prompts differ until a task runs out of them.

        Training examples then start over with new ids. Of pages, every second one is long.

        Raises:
            UserError: no such task or split, or more held-out examples than there are prompts.
        """
        if task not in TASKS:
            raise UserError(f"the pocket world has no task {task!r}; use one of {', '.join(TASKS)}")
        if task == "page":
            return self._deal(("page", "long page"), split, n)
        return self._take(task, split, n)

    def task(self, name: str) -> Task:
        """One of the nine as a task like any other."""
        return Task(
            name,
            lambda split, n: self.examples(name, split, DRAWN_EXAMPLES if n is None else n),
            _FIRST_TURN[name],
            max_new_tokens=512,
        )

    def loop_prone(self, split: Split, n: int) -> list[Example]:
        """``n`` prompts that tempt a small model to loop: long pages, lists, long walks, long sums, in turn.

        Two of five are pages.

        Raises:
            UserError: no such split, or more held-out examples than there are prompts.
        """
        return self._deal(LOOP_PRONE, split, n)

    def _deal(self, order: tuple[str, ...], split: Split, n: int) -> list[Example]:
        """``n`` examples, their kinds those of ``order`` over and over."""
        kinds = list(islice(cycle(order), n))
        streams = {kind: iter(self._take(kind, split, kinds.count(kind))) for kind in set(order)}
        return [next(streams[kind]) for kind in kinds]

    def _take(self, kind: str, split: Split, n: int) -> list[Example]:
        if split not in SPLITS:
            raise UserError(f"the pocket world has no split {split!r}; use one of {', '.join(SPLITS)}")
        drafts = list(islice(self._drafts(kind, split, repeat=split == "train"), n))
        if len(drafts) < n:
            raise UserError(
                f"the pocket world has {len(drafts)} {split} prompts of the kind {kind!r}, not {n}; "
                "ask for fewer or make a world of more entities"
            )
        task = kind.removeprefix("long ")
        return [
            Example(
                id=f"{kind.replace(' ', '-')}-{split}-{number}",
                task=task,
                split=split,
                messages=draft.messages,
                reference=draft.turns,
                answer=draft.answer,
                tools=draft.tools,
                loop_prone=kind in LOOP_PRONE,
            )
            for number, draft in enumerate(drafts)
        ]

    def _drafts(self, kind: str, split: Split, repeat: bool, stream: str = "examples") -> Iterator[Draft]:
        """Drafts of one kind, all prompts different; with ``repeat`` it never ends and starts over instead."""
        rng = Random(f"{self.seed}/{stream}/{kind}/{split}")
        drawers: dict[str, Callable[[], Draft]] = {
            "arithmetic": lambda: arithmetic.draw(rng, split),
            "long arithmetic": lambda: arithmetic.draw(rng, split, long=True),
            "walk": lambda: walks.draw(rng, split),
            "long walk": lambda: walks.draw(rng, split, long=True),
            "extraction": lambda: extraction.draw(rng, split),
            "calculator": lambda: tools.draw_calculation(rng, split),
            "summary": lambda: summaries.draw(rng, split),
        }
        if kind in drawers:
            yield from distinct(drawers[kind], repeat)
            return
        listers: dict[str, Callable[[str, Split, Random], Iterator[Draft]]] = {
            "page": self._page_drafts,
            "long page": self._page_drafts,
            "enumeration": self._list_drafts,
            "question": self._question_drafts,
            "search": self._question_drafts,
        }
        while True:
            yield from listers[kind](kind, split, rng)
            if not repeat:
                return

    def _page_drafts(self, kind: str, split: Split, rng: Random) -> Iterator[Draft]:
        long = kind == "long page"
        subjects = [e for e in self._shelves[split].entities if not long or e.kind in pages.LONG_KINDS]
        rng.shuffle(subjects)
        return (pages.page_draft(entity, rng, long) for entity in subjects)

    def _list_drafts(self, _: str, split: Split, rng: Random) -> Iterator[Draft]:
        provinces = [e.name for e in self._shelves[split].entities if e.kind == "province"]
        subjects = [(place, category) for place in provinces for category in enumerations.CATEGORIES]
        for wording in enumerations.WORDINGS:
            rng.shuffle(subjects)
            for place, category in subjects:
                yield enumerations.draft(self.seed, place, category, wording)

    def _question_drafts(self, kind: str, split: Split, rng: Random) -> Iterator[Draft]:
        entities = self._shelves[split].entities
        for wording in questions.WORDINGS:
            hops = [questions.one_hop(entities), questions.two_hop(entities)]
            for found in hops:
                rng.shuffle(found)
            for pair in zip(*hops, strict=False):
                for question in pair:
                    # Both wordings come in each pass over the questions; the second pass asks each the other way.
                    style = (wording + len(question.subject.name)) % 2
                    if kind == "search":
                        yield questions.with_search(question, style, self._search)
                    else:
                        yield questions.closed_book(question, style)

    def _search(self, entity: Entity) -> str:
        """What the search tool returns for an entity's name: its page first, as the title matches."""
        second = self._shelves[entity.split].second_hits.get(entity.name)
        return tools.format_hits(entity.name, [self._pages[entity.name], *([second] if second else [])])

    def _shelf(self, split: Split) -> _Shelf:
        entities = [entity for entity in self._entities if entity.split == split]
        second: dict[str, Page] = {}
        for entity in entities:
            page = self._pages[entity.name]
            for relation in entity.links:
                name = entity.facts[relation]
                # A real index ranks a page that mentions the name behind the page about it, and shorter pages higher.
                if name not in second or len(page.text) < len(second[name].text):
                    second[name] = page
        # Where nothing mentions the name, a page whose title shares its first word comes second.
        namesakes: dict[str, Page] = {}
        for entity in entities:
            first_word = entity.name.split()[0]
            if entity.name not in second and first_word in namesakes:
                second[entity.name] = namesakes[first_word]
            namesakes[first_word] = self._pages[entity.name]
        return _Shelf(entities, second)

    def _documents(self, kind: str) -> Iterator[str]:
        if kind == "reading":
            yield from self._readings()
        for draft in self._drafts(kind, "train", repeat=True, stream="documents"):
            if kind.endswith("page"):
                yield draft.turns[0]["content"]
            else:
                yield "\n".join(_plain(turn["content"]) for turn in [*draft.messages, *draft.turns])

    def _readings(self) -> Iterator[str]:
        """Pages with all their questions and answers: a model that is to look things up must have learnt to read."""
        rng = Random(f"{self.seed}/documents/reading")
        entities = list(self._shelves["train"].entities)
        while True:
            rng.shuffle(entities)
            for entity in entities:
                asked = questions.one_hop([entity])
                rng.shuffle(asked)
                lines = [f"{question.text(rng.choice(questions.WORDINGS))}\n{question.reply}" for question in asked]
                yield "\n".join([self._pages[entity.name].text, *lines])


def _plain(content: str) -> str:
    """A turn as plain text: a call becomes "Search: Velmora" or "Calculator: 2 + 2"."""
    call = tools.first_call(content)
    return f"{call['name'].capitalize()}: {next(iter(call['arguments'].values()))}" if call else content
