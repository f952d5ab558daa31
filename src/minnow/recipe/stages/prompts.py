"""Which prompts each stage draws, so that nothing is measured on what was trained on."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from minnow.errors import UserError
from minnow.evaluate.prompts import SETS, prompt_set, read_prompts
from minnow.recipe.mapping import nearest
from minnow.recipe.schema import Recipe
from minnow.recipe.stages.sources import checkpoint_world, task_examples, world
from minnow.recipe.tasks import is_endless, load_task, names_task
from minnow.tasks import TASKS, Example, PocketWorld
from minnow.tasks.builtin import BUILT_IN
from minnow.tasks.given import verify_given
from minnow.tasks.task import refuse_conversations, register
from minnow.tasks.types import SPLITS

ASIDE = 5
"""Of a user's prompts one in so many is held out for measuring, and another one for the gate."""

LOOSE = "loose"
"""The split of a prompt that no task has put into one."""


def prompts_of(recipe: Recipe) -> Prompts:
    """The recipe's prompts.

    Raises:
        UserError: its data is text, or its prompts are missing or malformed.
    """
    if recipe.data.kind != "prompts":
        return PocketPrompts(recipe)
    return own_prompts(recipe)


def own_prompts(recipe: Recipe) -> GivenPrompts:
    """The sets, files and tasks that a recipe of ``data.kind: prompts`` names."""
    return given_prompts(recipe.data.prompts, recipe.data.count, recipe.seed, checkpoint_world(recipe))


@dataclass(frozen=True)
class PocketPrompts:
    """Of the pocket world: endless streams of each kind, of which pairs take the beginning, RL what follows."""

    recipe: Recipe

    @property
    def world(self) -> PocketWorld:
        return world(self.recipe)

    def to_pair(self, loops: int, each_task: int) -> list[Example]:
        """For preference pairs."""
        return self.world.loop_prone("train", loops) + task_examples(self.recipe, (), "train", each_task)

    def to_gate(self, first: int, loops: int, each_task: int) -> tuple[list[Example], list[Example]]:
        """For choosing checkpoints: to count loops on, and to score. ``first`` is a place in an endless stream."""
        tasks = [self.world.examples(task, "train", first + each_task)[first:] for task in self.world.TASKS]
        return self.world.loop_prone("train", first + loops)[first:], [each for group in tasks for each in group]

    def to_measure(self, tasks: tuple[str, ...], each_task: int, loops: int) -> tuple[list[Example], list[Example]]:
        """Held-out ones: to score, and to count loops on."""
        return task_examples(self.recipe, tasks, "held_out", each_task), self.world.loop_prone("held_out", loops)

    def to_explore(self, steps: int, each_step: int, loop_share: float, first: int) -> Callable[[int], list[Example]]:
        """For RL: the prompts of a step."""
        loops = round(each_step * loop_share)
        others = each_step - loops
        # The pairs stage rolled out the first prompts of each stream; the policy sees others.
        loop_prompts = self.world.loop_prone("train", first)[-loops * steps :] if loops else []
        per_task = -(-others * steps // len(self.world.TASKS))
        by_task = [self.world.examples(task, "train", first)[-per_task:] for task in self.world.TASKS] if others else []
        task_prompts = [example for group in zip(*by_task, strict=True) for example in group]
        return lambda step: (
            loop_prompts[step * loops : (step + 1) * loops] + task_prompts[step * others : (step + 1) * others]
        )

    def to_replay(self, each_task: int) -> list[Example]:
        """Worked examples, where there are any."""
        return task_examples(self.recipe, (), "train", each_task)


def digest(examples: Iterable[Example]) -> str:
    """Of all that is asked, expected and shown as right."""
    rows = [[each.id, each.messages, each.tools, each.reference, repr(each.answer)] for each in examples]
    text = json.dumps(rows, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


@dataclass(frozen=True)
class GivenPrompts:
    """A user's prompts: every one is both loop-prone and scored. Numbers are the most that are taken, else the methods are
    those of :class:`PocketPrompts`.

    What a task holds out is held out here too, and all else of it is not.
    """

    train: Sequence[Example]
    gate: Sequence[Example]
    held_out: Sequence[Example]
    seed: int

    @property
    def digest(self) -> str:
        return digest([*self.train, *self.gate, *self.held_out])

    def to_pair(self, loops: int, each_task: int) -> list[Example]:
        return list(self.train[:loops])

    def to_gate(self, first: int, loops: int, each_task: int) -> tuple[list[Example], list[Example]]:
        chosen = list(self.gate[:loops])
        return chosen, chosen

    def to_measure(self, tasks: tuple[str, ...], each_task: int, loops: int) -> tuple[list[Example], list[Example]]:
        return list(self.held_out[:loops]), list(self.held_out[:loops])

    def to_explore(self, steps: int, each_step: int, loop_share: float, first: int) -> Callable[[int], list[Example]]:
        order: list[Example] = []
        for epoch in range(-(-steps * each_step // len(self.train))):
            order += random.Random(f"{self.seed}/{epoch}").sample(self.train, len(self.train))
        return lambda step: order[step * each_step : (step + 1) * each_step]

    def to_replay(self, each_task: int) -> list[Example]:
        taken: Counter[str] = Counter()
        worked = []
        for each in self.train:
            if each.reference and taken[each.task] < each_task:
                taken[each.task] += 1
                worked.append(each)
        return worked


Prompts = PocketPrompts | GivenPrompts
"""The prompts of a recipe, loop-prone ones and those that keep answers good."""


@lru_cache(maxsize=4)
def given_prompts(names: tuple[str, ...], count: int, seed: int, world: PocketWorld | None = None) -> GivenPrompts:
    """Read and part prompts (see :func:`read_given`); each belongs to one part by its task's split, then its checksum.

    Raises:
        UserError: a name that is neither a set nor a file, a malformed file, or too few different prompts.
    """
    found = read_given(names, count, seed, world)
    if len(found) < ASIDE:
        raise UserError(
            f"there are {len(found)} different prompts, too few to train on some and measure on others; give at least "
            f"{ASIDE}, and some hundreds for rates that mean something"
        )
    order = sorted(found, key=lambda each: hashlib.sha256(f"{seed}/{_asked(each)}".encode()).digest())
    loose, taught = ([each for each in order if each.split == split] for split in (LOOSE, "train"))
    aside, gate = len(loose) // ASIDE, len(taught) // ASIDE
    parts = {each.id: "held_out" for each in order if each.split == "held_out"}
    parts |= {each.id: "held_out" for each in loose[:aside]}
    parts |= {each.id: "gate" for each in (*loose[aside : 2 * aside], *taught[:gate])}
    train, gated, held_out = (
        [each for each in order if parts.get(each.id, "train") == part] for part in ("train", "gate", "held_out")
    )
    return GivenPrompts(train, gated, held_out, seed)


def read_given(names: Sequence[str], count: int, seed: int = 0, world: PocketWorld | None = None) -> list[Example]:
    """The different prompts of sets, files of prompts and tasks, the latter's with their splits, others :data:`LOOSE`.

    Args:
        count: of each set, and of each split of a task without an end.
        world: see :func:`minnow.recipe.tasks.load_task`, as for ``seed``.

    Raises:
        UserError: a name that is none of these, or a malformed file.
    """
    found: dict[str, Example] = {}
    for name in names:
        for example in _read(name, count, seed, world):
            found.setdefault(_asked(example), example)
    ids = Counter(example.id for example in found.values())  # two files may have one name
    return [
        replace(each, id=f"{each.id}#{place}") if ids[each.id] > 1 else each
        for place, each in enumerate(found.values())
    ]


def _asked(example: Example) -> str:
    return json.dumps([example.messages, example.tools], sort_keys=True)


def _read(name: str, count: int, seed: int, world: PocketWorld | None) -> list[Example]:
    if name in SETS:
        read = prompt_set(name, count)
    elif names_task(name):
        task = load_task(name, None, world, seed, data="both")
        found = [each for split in SPLITS for each in task.examples(split, count if is_endless(name) else None)]
        refuse_conversations(found)
        return [replace(each, id=f"{task.name}/{each.id}") for each in found]
    elif Path(name).exists() or "." in name:
        read = read_prompts(Path(name))
    else:
        known = [*SETS, *BUILT_IN, *TASKS]
        raise UserError(f"there are no prompts {name!r}; {nearest(name, known)}, or name a file of prompts")
    out = []
    for example in read:
        task_name = re.sub(r"[^a-z0-9_.-]+", "-", example.task.lower()).strip("-.") or "prompts"
        register(task_name, verify_given)
        out.append(replace(example, id=f"{Path(name).stem}/{example.id}", task=task_name, split=LOOSE))
    return out
