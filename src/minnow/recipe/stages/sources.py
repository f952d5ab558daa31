"""Where a recipe's text, examples and models come from."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint
from minnow.model.config import ModelConfig
from minnow.model.language_model import LanguageModel
from minnow.recipe.mapping import nearest
from minnow.recipe.run_record import pocket_world, run_of
from minnow.recipe.schema import Recipe
from minnow.rollout import TorchEngine
from minnow.tasks import Example, PocketWorld, Split
from minnow.train.precision import compute_dtype

CHECKPOINT = "checkpoint"
"""The folder, below a stage's own, that holds the checkpoint it made."""


def world(recipe: Recipe) -> PocketWorld:
    """The recipe's pocket world.

    Raises:
        UserError: the recipe's data is text.
    """
    if recipe.data.kind != "pocket":
        raise UserError(f"data.kind is {recipe.data.kind!r}, but this stage needs the tasks of data.kind: pocket")
    return pocket_world(recipe.seed, recipe.data.entities)


def checkpoint_world(recipe: Recipe) -> PocketWorld | None:
    """The pocket world that the recipe's model was trained on: its own, or that of its checkpoint's run."""
    if recipe.data.kind == "pocket":
        return world(recipe)
    run = None if recipe.checkpoint is None else run_of(Path(recipe.checkpoint))
    return None if run is None else run.world()


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The recipe's backbone for the tokenizer it was given."""
    shape = recipe.shape.config(tokenizer.vocab_size)
    return replace(shape, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)


def engine_of(checkpoint: Path, rows: int = 384) -> tuple[TorchEngine, LanguageModel, Tokenizer]:
    """A decoding engine over a checkpoint folder, in the machine's fast type."""
    model, tokenizer = load_checkpoint(checkpoint)
    model.to(compute_dtype())
    return TorchEngine(model, tokenizer, rows), model, tokenizer


def frozen_teacher(checkpoint: Path, words: Tokenizer) -> LanguageModel:
    """A model to learn from, in the machine's fast type.

    Raises:
        UserError: its tokenizer is another one than the student's ``words``.
    """
    model, known = load_checkpoint(checkpoint)
    if known.digest != words.digest:
        raise UserError(
            f"{checkpoint} has another tokenizer than the student, so its answers are other ids; choose a teacher of the "
            "same family, or train one with the same tokenizer"
        )
    return model.to(compute_dtype()).eval().requires_grad_(False)


def check_tasks(names: Iterable[str]) -> None:
    """Raise UserError where the pocket world does not have a task."""
    for name in names:
        if name not in PocketWorld.TASKS:
            raise UserError(f"there is no task {name!r}; {nearest(name, PocketWorld.TASKS)}")


def task_examples(
    recipe: Recipe, tasks: tuple[str, ...], split: Split, each: int, more: Mapping[str, int] | None = None
) -> list[Example]:
    """``each`` examples of every task, or of ``tasks``; ``more`` gives other numbers for some of them.

    Raises:
        UserError: there is no such task.
    """
    pocket, counts = world(recipe), dict(more or {})
    check_tasks([*tasks, *counts])
    chosen = tasks or pocket.TASKS
    return [example for task in chosen for example in pocket.examples(task, split, counts.get(task, each))]
