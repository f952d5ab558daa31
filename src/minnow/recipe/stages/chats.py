"""The stage that brings conversations to fine-tune on: chats (files of them, and the worked examples of tasks)."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from minnow.data.cleaning import texts_in
from minnow.data.conversations import Conversation, Tokenised, read_conversations
from minnow.data.loader import Source
from minnow.data.packing import Packed, pack
from minnow.data.rows import IGNORED
from minnow.data.table import Faults
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_file, write_json
from minnow.posttrain.chat_checks import Check, check_conversations, report
from minnow.progress import say
from minnow.recipe.context import StageContext
from minnow.recipe.folder import hash_file
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.schema import Recipe
from minnow.recipe.stages.prompts import digest, own_prompts
from minnow.recipe.stages.sources import CHECKPOINT, checkpoint_world
from minnow.recipe.tasks import load_task
from minnow.tasks import Example

SOURCES = "sources.json"
_GRAIN = 64  # rows of training that a part of a source from easy to hard fills


@dataclass(frozen=True)
class ChatSource:
    """One part of what is fine-tuned on: a file of conversations, or worked examples.

    Attributes:
        own: the worked examples of the recipe's own prompts, those that are to be trained on.
        path: rows that :func:`minnow.data.conversations.read_conversations` reads.
        task: a task as :func:`minnow.recipe.tasks.load_task` names it, but ``NAME=FILE`` with data to train on.
        examples: the most rows that are taken; of a task without an end by default 200.
        weight: share of the rows of training; without any weights each source has that of its rows.
        epochs: the most passes over it; none for no limit.
        easy_to_hard: read the rows in the order of their ``difficulty``.
    """

    own: bool = False
    path: Path | None = None
    task: str | None = None
    examples: int | None = None
    weight: float | None = None
    epochs: float | None = None
    easy_to_hard: bool = False

    def __post_init__(self) -> None:
        if self.own + (self.path is not None) + (self.task is not None) != 1:
            raise UserError(
                "a source is a file, a task or the recipe's own prompts; name one of path, task and own: true"
            )
        if self.examples is not None and self.examples < 1:
            raise UserError(f"examples is {self.examples}; take at least 1, or leave it out for all")
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs:g}; use a number above 0, or leave it out for no limit")

    def worked(self, recipe: Recipe, faults: Faults) -> tuple[list[Example], list[Example]]:
        """Worked examples to train on, and the prompts that they must not hold; none of a file."""
        if self.own:
            if recipe.data.kind != "prompts":
                raise UserError("a source of the recipe's own prompts needs data.kind: prompts, with tasks among them")
            prompts = own_prompts(recipe)
            return prompts.to_replay(sys.maxsize)[: self.examples], list(prompts.held_out)
        if self.task is None:
            return [], []
        task = load_task(self.task, faults, checkpoint_world(recipe), recipe.seed, data="train")
        try:
            held_out = task.examples("held_out", None)
        except UserError:  # its one file is all to train on
            held_out = []
        return task.examples("train", self.examples), held_out


@dataclass(frozen=True)
class ChatsSettings:
    """Conversations to fine-tune on.

    Attributes:
        checkpoint: whose tokenizer and chat format they are put in.
        against: evaluation sets, files of rows; what tasks among the sources hold out is looked for unasked.
        leave_out: rows that fail one of these checks are not trained on; all are counted.
        skip_bad_rows: leave out malformed rows, counted and named, instead of stopping at the first.
    """

    checkpoint: str = stage_input("base")
    sources: dict[str, ChatSource] = field(default_factory=dict)
    against: tuple[Path, ...] = ()
    leave_out: tuple[Check, ...] = ()
    skip_bad_rows: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty; name at least one file or task to train on")
        given = [source.weight is None for source in self.sources.values()]
        if any(given) and not all(given):
            raise UserError("some sources have a weight and some have none; give one to each or to none")

    def contents(self, recipe: Recipe) -> dict[str, str]:
        """Digests of what the sources and evaluation sets hold, by name."""
        out = {f"against.{place}": hash_file(file) for place, file in enumerate(self.against) if file.exists()}
        for name, source in self.sources.items():
            if source.path is None:
                worked, _ = source.worked(recipe, Faults(skip=True))
                out[f"sources.{name}"] = digest(worked)
            elif source.path.exists():
                out[f"sources.{name}"] = hash_file(source.path)
        return out


@stage("chats", ChatsSettings, uses=("seed", "checkpoint"))
def chats(context: StageContext[ChatsSettings]) -> dict[str, Any]:
    """Read, check and tokenise conversations; ``result.json`` is the report on them."""
    settings, faults = context.settings, Faults(context.settings.skip_bad_rows)
    words = Tokenizer.load(context.output(settings.checkpoint, CHECKPOINT))
    read: list[tuple[str, Conversation]] = []
    evaluation = list(texts_in(settings.against))
    for name, source in settings.sources.items():
        shown, held_out = source.worked(context.recipe, faults)
        evaluation += ["\n".join(each["content"] for each in example.messages) for example in held_out]
        found = worked(shown)
        if source.path is not None:
            found = list(islice(read_conversations(source.path, faults), source.examples))
        read += [(name, each) for each in found]
    kept = list(faults.usable(lambda each: (*each, each[1].tokenised(words)), read))
    rows = [row for _, row, _ in kept]
    failed = check_conversations(rows, evaluation)
    out = report(rows, failed, [len(ids) for _, _, (ids, _) in kept])
    wanted = [each for each, checks in zip(kept, failed, strict=True) if not checks.intersection(settings.leave_out)]
    trained = {}
    for name, source in settings.sources.items():
        own = [(row, ids) for owner, row, ids in wanted if owner == name]
        if not own:
            raise UserError(f"source {name} has no row to train on; give it some, or leave fewer out")
        if source.easy_to_hard:
            own.sort(key=lambda each: _difficulty(each[0]))
        _write(context.folder / f"{name}.npz", [ids for _, ids in own])
        trained[name] = {
            "rows": len(own),
            "weight": source.weight,
            "epochs": source.epochs,
            "easy_to_hard": source.easy_to_hard,
        }
    write_json(context.folder / SOURCES, trained)
    for check, each in out["checks"].items():
        if each["count"]:
            does = "left out" if check in settings.leave_out else "kept"
            say(
                f"{context.name}: {each['count']} of {out['rows']} rows {check}, {does}; the first is {each['first'][0]}"
            )
    return out | {"trained": trained, "bad_rows": faults.found}


def worked(examples: Iterable[Example]) -> list[Conversation]:
    """Examples with their references."""
    return [
        Conversation(f"example {each.id}", [*each.messages, *each.reference], each.tools, each.difficulty)
        for each in examples
    ]


def _difficulty(row: Conversation) -> float:
    if row.difficulty is None:
        raise UserError(f"{row.place} has no 'difficulty', which easy_to_hard goes by; write one")
    return row.difficulty


def _write(path: Path, made: list[Tokenised]) -> None:
    with whole_file(path) as temporary, temporary.open("wb") as file:
        np.savez(
            file,
            ids=np.concatenate([ids for ids, _ in made]),
            mask=np.concatenate([mask for _, mask in made]),
            lengths=np.array([len(ids) for ids, _ in made]),
        )


def read_chats(folder: Path, row_length: int, pad_id: int) -> list[Source]:
    """The sources that a ``chats`` stage left in ``folder``, packed; no row without a token to train on."""
    described = read_json(folder / SOURCES)
    packed = {}
    for name, each in described.items():
        with np.load(folder / f"{name}.npz") as held:
            ends = np.cumsum(held["lengths"])[:-1]
            made = list(zip(np.split(held["ids"], ends), np.split(held["mask"], ends), strict=True))
        packed[name] = _packed(made, row_length, pad_id, each["easy_to_hard"])
    total = sum(map(len, packed.values()))
    return [
        Source(
            name,
            packed[name],
            len(packed[name]) / total if each["weight"] is None else each["weight"],
            each["epochs"],
            each["easy_to_hard"],
        )
        for name, each in described.items()
    ]


def _packed(made: list[Tokenised], row_length: int, pad_id: int, in_order: bool) -> Packed:
    """Best fit moves short conversations about; in order they are packed a part at a time."""
    parts, size = [made], sum(len(ids) for ids, _ in made)
    if in_order and size > _GRAIN * row_length:
        edges = np.cumsum([len(ids) for ids, _ in made]) // (_GRAIN * row_length)
        parts = [[made[i] for i in np.flatnonzero(edges == part)] for part in np.unique(edges)]
    packed = [pack(part, row_length, pad_id) for part in parts]
    tokens, targets, documents = (
        np.concatenate([getattr(each, name) for each in packed]) for name in ("tokens", "targets", "documents")
    )
    trained = (targets != IGNORED).any(1)  # a long conversation is split, and a piece may hold no answer
    return Packed(tokens[trained], targets[trained], documents[trained])
