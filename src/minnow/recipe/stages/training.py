"""Stages that teach a model from text and examples: tokenizer, pretrain, sft."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from minnow.data.loader import Loader
from minnow.data.packing import Packed, pack, tokenize_documents
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.evaluate.text import held_out_loss, held_out_rows
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.progress import say, track
from minnow.recipe.context import Metrics, StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.sources import CHECKPOINT, check_tasks, model_config, task_examples, training_text
from minnow.tasks import Example
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token
from minnow.train.precision import choose_threads
from minnow.train.prefetch import Prefetch


@dataclass(frozen=True)
class TokenizerSettings:
    documents: int = 4000


@stage("tokenizer", TokenizerSettings, uses=("seed", "data", "model.vocab_size"))
def tokenizer(context: StageContext[TokenizerSettings]) -> dict[str, Any]:
    """Train the tokenizer on the recipe's text."""
    texts, held_out = training_text(context.recipe, context.settings.documents)
    made = train_tokenizer(texts, context.recipe.model.vocab_size)
    made.save(context.folder / CHECKPOINT)
    ids = made.encode_batch(held_out)
    size = sum(len(text.encode()) for text in held_out)
    return {"vocab_size": made.vocab_size, "bytes_per_token": size / max(1, sum(map(len, ids)))}


@dataclass(frozen=True)
class TextTrainingSettings:
    """Pre-training: what is read and for how long.

    Attributes:
        documents: generated documents (pocket world); a text corpus is read whole.
        row_length: tokens in a packed row.
        rows: rows per step.
        held_out_rows: rows of held-out text that are measured every ``measure_every`` steps.
    """

    tokenizer: str = stage_input("tokenizer")
    documents: int = 20_000
    row_length: int = 256
    rows: int = 32
    measure_every: int = 50
    held_out_rows: int = 64
    training: TrainSettings = field(default_factory=lambda: TrainSettings(steps=400))

    def __post_init__(self) -> None:
        _check_batch(self.row_length, self.rows)


def _check_batch(row_length: int, rows: int) -> None:
    if row_length < 2 or rows < 1:
        raise UserError(
            f"row_length is {row_length} and rows {rows}; a batch needs at least 1 row of at least 2 tokens"
        )


def set_threads(context: StageContext[Any], device: torch.device | str = "cpu") -> None:
    """Give torch the recipe's threads, or the fastest number of them; say so, and which kernels ``device`` has."""
    threads = choose_threads(context.recipe.threads)
    say(f"{context.name}: {threads} thread{'s' if threads > 1 else ''}, {kernels.describe(device)}")


def train(trainer: Trainer, label: str, metrics: Metrics, check: Any = None, check_every: int = 0) -> None:
    """Run a trainer under a progress bar; ``metrics`` are those that it records."""
    # Without a saved state even what was measured before the first step comes again.
    metrics.rewind(trainer.done_steps if trainer.state_file.exists() else -1)
    with track(trainer.settings.steps, label, "step", done=trainer.done_steps) as bar:

        def progress(steps: int, note: str) -> None:
            bar.advance(steps)
            bar.note(note)

        trainer.run(check, check_every, progress)


def train_stage(
    context: StageContext[Any],
    trainer: Trainer,
    save_as: Tokenizer,
    check: Any = None,
    check_every: int = 0,
) -> dict[str, Any]:
    """Run a trainer under the stage's progress bar and save its checkpoint."""
    set_threads(context, next(trainer.model.parameters()).device)
    train(trainer, context.name, context.metrics, check, check_every)
    save_checkpoint(trainer.model, save_as, context.folder / CHECKPOINT, trainer.optimizer.weights())
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "steps": trainer.done_steps,
        "tokens": trainer.tokens,
        "seconds": trainer.seconds,
        "tokens_per_second": trainer.tokens / max(1e-9, trainer.seconds),
        # None where no step had anything to learn from, as when all rollouts earned the same.
        "final_loss": trainer.last_loss if math.isfinite(trainer.last_loss) else None,
    }


def text_rows(
    context: StageContext[Any], settings: TextTrainingSettings, words: Tokenizer, seed: int
) -> tuple[Packed, Packed]:
    """The recipe's text as packed rows to train on, kept in the stage's state, and held-out rows drawn by ``seed``."""
    corpus = context.state / "corpus"
    texts, held_out = training_text(context.recipe, settings.documents)
    if not corpus.exists():
        rows = pack(((ids, None) for ids in tokenize_documents(texts, words)), settings.row_length, words.pad_id)
        rows.save(corpus, words.digest)
    measured = held_out_rows(
        tokenize_documents(held_out, words), words, settings.row_length, settings.held_out_rows, seed
    )
    return Packed.load(corpus, words.digest), measured


@stage("pretrain", TextTrainingSettings)
def pretrain(context: StageContext[TextTrainingSettings]) -> dict[str, Any]:
    """Next-token training from random weights."""
    settings = context.settings
    words = Tokenizer.load(context.output(settings.tokenizer, CHECKPOINT))
    packed, measured = text_rows(context, settings, words, context.seed)
    loader = Loader(packed, settings.rows, context.seed)
    model = Backbone(model_config(context.recipe, words))
    model.initialise(context.seed)
    trainer = Trainer(
        model,
        next_token,
        Prefetch(lambda step: [loader.batch(step)]),
        settings.training,
        context.record,
        context.state / "train.pt",
    )

    def check(trainer: Trainer) -> bool:
        numbers = held_out_loss(trainer.model, measured, words)
        trainer.notes.update(numbers)
        context.record(step=trainer.done_steps, tokens=trainer.tokens, seconds=trainer.seconds, **numbers)
        return True

    result = train_stage(context, trainer, words, check if len(measured.tokens) else None, settings.measure_every)
    unique = int(np.count_nonzero(packed.documents))
    return result | {"corpus_tokens": unique, "epochs": loader.epochs(trainer.done_steps), **trainer.notes}


@dataclass(frozen=True)
class SftSettings:
    """Fine-tuning on worked examples.

    Attributes:
        examples: per task.
        more: other numbers for some tasks; 0 leaves a task out.
    """

    checkpoint: str = stage_input("pretrain")
    examples: int = 1500
    more: dict[str, int] = field(default_factory=dict)
    row_length: int = 256
    rows: int = 32
    training: TrainSettings = field(default_factory=lambda: TrainSettings(steps=150))

    def __post_init__(self) -> None:
        _check_batch(self.row_length, self.rows)
        check_tasks(self.more)


def conversations(words: Tokenizer, examples: Iterable[Example]) -> list[tuple[list[int], list[bool]]]:
    """Ids and completion masks of examples with their references."""
    return [words.conversation([*e.messages, *e.reference], e.tools) for e in examples]


@stage("sft", SftSettings)
def sft(context: StageContext[SftSettings]) -> dict[str, Any]:
    """Train on the references of every task, on assistant tokens only."""
    settings = context.settings
    model, words = load_checkpoint(context.output(settings.checkpoint, CHECKPOINT))
    examples = task_examples(context.recipe, (), "train", settings.examples, settings.more)
    packed = pack(conversations(words, examples), settings.row_length, words.pad_id)
    loader = Loader(packed, settings.rows, context.seed)
    trainer = Trainer(
        model,
        next_token,
        Prefetch(lambda step: [loader.batch(step)]),
        settings.training,
        context.record,
        context.state / "train.pt",
    )
    return train_stage(context, trainer, words) | {"epochs": loader.epochs(trainer.done_steps)}
