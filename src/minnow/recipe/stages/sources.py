"""Where a recipe's text, examples and models come from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from itertools import islice
from pathlib import Path

from minnow.data.documents import read_documents
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.recipe.mapping import nearest
from minnow.recipe.schema import Recipe
from minnow.rollout import TorchEngine
from minnow.tasks import Example, PocketWorld, Split
from minnow.train.precision import compute_dtype

CHECKPOINT = "checkpoint"
"""The folder, below a stage's own, that holds the checkpoint it made."""

HELD_OUT_EVERY = 20
"""Of a text corpus every so-manieth document is held out."""


@lru_cache(maxsize=1)
def _world(seed: int, entities: int | None) -> PocketWorld:
    return PocketWorld(seed) if entities is None else PocketWorld(seed, entities)


def world(recipe: Recipe) -> PocketWorld:
    """The recipe's pocket world.

    Raises:
        UserError: the recipe's data is text.
    """
    if recipe.data.kind != "pocket":
        raise UserError(f"data.kind is {recipe.data.kind!r}, but this stage needs the tasks of data.kind: pocket")
    return _world(recipe.seed, recipe.data.entities)


def training_text(recipe: Recipe, documents: int) -> tuple[Iterator[str], list[str]]:
    """Documents to train on, and held-out ones: for the pocket world the first ``documents`` and 200 more."""
    if recipe.data.kind == "pocket":
        stream = iter(world(recipe).documents(documents + 200))
        training = list(islice(stream, documents))
        return iter(training), list(stream)
    held_out: list[str] = []
    training = []
    for i, text in enumerate(_text_documents(recipe)):
        (held_out if i % HELD_OUT_EVERY == HELD_OUT_EVERY - 1 else training).append(text)
    if not held_out and len(training) > 1:
        held_out.append(training.pop())
    return iter(training), held_out


def _text_documents(recipe: Recipe) -> Iterator[str]:
    assert recipe.data.path is not None, "the schema asks for a path"
    return read_documents(recipe.data.path, recipe.data.text_field)


def model_shape(recipe: Recipe, vocab_size: int) -> ModelConfig:
    """The recipe's backbone; the vocabulary is rounded up to a multiple of 32 for quantisation."""
    shape = recipe.model
    names = {"conv": CONV, "attn": ATTENTION}
    return ModelConfig(
        vocab_size=-(-vocab_size // 32) * 32,
        hidden_size=shape.hidden_size,
        intermediate_size=shape.intermediate_size,
        layer_types=tuple(names[layer] for layer in shape.layers),
        num_heads=shape.heads,
        num_kv_heads=shape.kv_heads,
        head_dim=shape.head_dim,
        conv_kernel=shape.conv_kernel,
        rope_theta=shape.rope_theta,
        max_positions=shape.max_positions,
    )


def model_config(recipe: Recipe, tokenizer: Tokenizer) -> ModelConfig:
    """The recipe's backbone for the tokenizer it was given."""
    shape = model_shape(recipe, tokenizer.vocab_size)
    return replace(shape, pad_id=tokenizer.pad_id, bos_id=tokenizer.bos_id, eos_id=tokenizer.eos_id)


def engine_of(checkpoint: Path, rows: int = 384) -> tuple[TorchEngine, Backbone, Tokenizer]:
    """A decoding engine over a checkpoint folder, in the machine's fast type."""
    model, tokenizer = load_checkpoint(checkpoint)
    model.to(compute_dtype())
    return TorchEngine(model, tokenizer, rows), model, tokenizer


def task_examples(
    recipe: Recipe, tasks: tuple[str, ...], split: Split, each: int, more: Mapping[str, int] | None = None
) -> list[Example]:
    """``each`` examples of every task, or of ``tasks``; ``more`` gives other numbers for some of them.

    Raises:
        UserError: ``more`` names a task that the world does not have.
    """
    pocket, counts = world(recipe), dict(more or {})
    chosen = tasks or pocket.TASKS
    unknown = sorted(set(counts) - set(chosen))
    if unknown:
        raise UserError(f"there is no task {unknown[0]!r}; {nearest(unknown[0], chosen)}")
    return [example for task in chosen for example in pocket.examples(task, split, counts.get(task, each))]
