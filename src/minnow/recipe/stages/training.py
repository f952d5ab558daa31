"""Stages that teach a model from text and examples: tokenizer, pretrain, sft."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import torch
import tyro

from minnow.data.corpus_rows import Packing
from minnow.data.loader import Loader
from minnow.data.packing import Packed, pack
from minnow.data.rows import Batch
from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.evaluate.text import held_out_loss, held_out_rows
from minnow.model import kernels
from minnow.model.adapter import save_adapter
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from minnow.model.language_model import LanguageModel
from minnow.posttrain.merge import soup
from minnow.progress import say, track
from minnow.recipe.context import Metrics, StageContext
from minnow.recipe.fit import fit_machine
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.chats import read_chats, worked
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT, check_tasks, model_config, task_examples
from minnow.recipe.stages.texts import held_out_documents, say_what_runs_dry, text_loader, training_texts
from minnow.recipe.stages.watching import EvaluateSettings, Look, chat_prompts, looks, loop_look, openings
from minnow.recipe.vitals import Vitals, shown
from minnow.train.batches import InputDropout, Prefetch, RampedLoader
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.lora import LoraOptimizer
from minnow.train.milestones import newest, write_checkpoint
from minnow.train.objectives import Objective, next_token
from minnow.train.optimizer import choose_muon, muon_cost
from minnow.train.precision import choose_threads, compute_dtype
from minnow.train.schedule import Ramp

ADAPTER = "adapter"
"""The folder, beside the checkpoint, of an adapter that was trained in place of the weights."""


@dataclass(frozen=True)
class TokenizerSettings:
    """Where the tokenizer comes from.

    Attributes:
        documents: generated documents (pocket world); a text corpus is read whole.
        path: folder of a finished tokenizer to be taken instead of training one.
    """

    documents: int = 4000
    path: Path | None = None


@stage("tokenizer", TokenizerSettings, uses=("seed", "data", "model.vocab_size"))
def tokenizer(context: StageContext[TokenizerSettings]) -> dict[str, Any]:
    """Train the tokenizer on the recipe's text, or take a finished one."""
    settings = context.settings
    if settings.path is None:
        made = train_tokenizer(training_texts(context.recipe, settings.documents), context.recipe.shape.vocab_size)
    else:
        made = Tokenizer.load(settings.path)
    made.save(context.folder / CHECKPOINT)
    held_out = held_out_documents(context.recipe, made, settings.documents)
    size = sum(len(made.decode(ids).encode()) for ids in held_out)
    spelled = sum(len(ids) - len(made.begin) - 1 for ids in held_out)
    return {"vocab_size": made.vocab_size, "bytes_per_token": size / max(1, spelled)}


@dataclass(frozen=True)
class TextTrainingSettings:
    """Pre-training, and mid-training from an earlier stage's checkpoint: what is read and for how long.

    Attributes:
        checkpoint: an earlier stage whose model and tokenizer training starts from; none for random weights.
        mixture: weights of the recipe's sources in this stage, in place of their own; a source without one is left out.
        packing: ``best-fit`` keeps documents whole where they fit; ``cut`` takes tokens as they come, without a table.
        input_dropout: share of the input tokens that the model is not shown.
        documents: generated documents (pocket world); a text corpus is read whole.
        row_length: tokens in a packed row.
        rows: rows per step.
        ramp: smaller batches and shorter rows at first.
        held_out_rows: rows of held-out text that are measured every ``measure_every`` steps.
        evaluate: greedy continuations of held-out documents, to see doom loops come and go.
    """

    tokenizer: str = stage_input("tokenizer")
    checkpoint: str | None = stage_input(None)
    mixture: dict[str, float] = field(default_factory=dict)
    packing: Packing = "best-fit"
    input_dropout: float = 0.0
    documents: int = 20_000
    row_length: int = 256
    rows: int = 32
    ramp: Ramp = field(default_factory=Ramp)
    measure_every: int = 50
    held_out_rows: int = 64
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    training: TrainSettings = field(default_factory=lambda: TrainSettings(steps=400))

    def __post_init__(self) -> None:
        _check_batch(self.row_length, self.rows)
        self.ramp.check(self.rows, self.row_length)
        if self.training.lora and self.checkpoint is None:
            raise UserError(
                "lora adapts a checkpoint, and this stage begins without one; leave it out, or name a checkpoint"
            )
        if not 0 <= self.input_dropout < 1:
            raise UserError(f"input_dropout is {self.input_dropout:g}; use a share from 0 to below 1")


def _check_batch(row_length: int, rows: int) -> None:
    if row_length < 2 or rows < 1:
        raise UserError(
            f"row_length is {row_length} and rows {rows}; a batch needs at least 1 row of at least 2 tokens"
        )


def settled(context: StageContext[Any], training: TrainSettings, model: LanguageModel, tokens: int) -> TrainSettings:
    """``training`` with its optimiser chosen for steps of ``tokens`` tokens; says which where the choice was left."""
    if training.lora:
        return training  # its factors are AdamW's
    optimizer = choose_muon(training.optimizer, model, tokens)
    if training.optimizer.muon == "auto":
        name = "Muon for matrices" if optimizer.muon else "AdamW"
        say(f"{context.name}: {name} (Muon costs {muon_cost(model, tokens):.0%} of a step's other products)")
    return replace(training, optimizer=optimizer)


def set_threads(context: StageContext[Any], device: torch.device | str = "cpu") -> None:
    """Give torch the recipe's threads, or the fastest number of them; say so, and which kernels ``device`` has."""
    ranks = context.ranks
    fastest = choose_threads(context.recipe.threads, processes=ranks.per_node)
    threads = choose_threads(ranks.from_first(fastest))
    say(f"{context.name}: {threads} thread{'s' if threads > 1 else ''}, {kernels.describe(device)}")


def train(
    trainer: Trainer,
    label: str,
    metrics: Metrics,
    check: Any = None,
    check_every: int = 0,
    checkpoint: Any = None,
    vitals: Vitals | None = None,
) -> None:
    """Run a trainer under a progress bar that shows what it records; ``metrics`` are those that it records.

    Args:
        vitals: completes the trainer's lines; None for all but the place in the data.
    """
    record, complete = trainer.record, vitals or Vitals(trainer.model)
    # Without a saved state even what was measured before the first step comes again.
    metrics.rewind(trainer.done_steps if trainer.resumed else -1)
    with track(trainer.settings.steps, label, "step", done=trainer.done_steps) as bar:

        def progress(steps: int, note: str) -> None:
            bar.advance(steps)
            bar.note(note)

        def tell(**line: Any) -> None:
            line = complete(line, trainer.done_steps + trainer.skipped_batches)
            record(**line)
            bar.show(shown(line), line.get("loss"))

        trainer.record = tell
        trainer.run(check, check_every, checkpoint, progress)


def train_stage(
    context: StageContext[Any],
    trainer: Trainer,
    save_as: Tokenizer,
    check: Any = None,
    check_every: int = 0,
    vitals: Vitals | None = None,
) -> dict[str, Any]:
    """Run a trainer under the stage's progress bar and save its checkpoint, averaged where the settings say so.

    Args:
        check, check_every: as for :meth:`Trainer.run`; what ``check`` measures it gives to ``trainer.record``.
    """
    set_threads(context, next(trainer.model.parameters()).device)
    kept, settings = context.folder / "checkpoints", trainer.settings.checkpoints

    def checkpoint(step: int) -> None:
        weights = trainer.optimizer.averaged()
        if context.ranks.first:
            write_checkpoint(
                lambda folder: save_checkpoint(trainer.model, save_as, folder, weights), kept, step, settings
            )

    train(trainer, context.name, context.metrics, check, check_every, checkpoint, vitals)
    weights = trainer.optimizer.averaged()
    if context.ranks.first:
        if settings.average:
            last = [folder for _, folder in newest(kept)[-settings.average :]]
            weights = soup([load_model(folder).state_dict() for folder in last]) if last else weights
        save_trained(context, trainer, save_as, weights)
    return {
        "parameters": sum(parameter.numel() for parameter in trainer.model.parameters()),
        "steps": trainer.done_steps,
        "tokens": trainer.tokens,
        "seconds": trainer.seconds,
        "tokens_per_second": trainer.tokens / max(1e-9, trainer.seconds),
        # None where no step had anything to learn from, as when all rollouts earned the same.
        "final_loss": trainer.last_loss if math.isfinite(trainer.last_loss) else None,
    }


def save_trained(
    context: StageContext[Any], trainer: Trainer, words: Tokenizer, weights: dict[str, torch.Tensor]
) -> None:
    """Write the stage's checkpoint and, where an adapter was trained, the adapter to the checkpoint it began from."""
    save_checkpoint(trainer.model, words, context.folder / CHECKPOINT, weights)
    if isinstance(trainer.optimizer, LoraOptimizer):
        base = context.output(context.settings.checkpoint, CHECKPOINT)
        save_adapter(context.folder / ADAPTER, trainer.optimizer.adapter(weights), str(base.resolve()))


def text_rows(
    context: StageContext[Any], settings: TextTrainingSettings, words: Tokenizer, seed: int
) -> tuple[RampedLoader, int, Packed]:
    """What a stage reads of the recipe's text in an order of ``seed``, the tokens there are, and held-out rows."""
    # The first rank tokenises, and the others find it done.
    loader, tokens = context.ranks.after_first(lambda: text_loader(context, settings, words, seed))
    ramped = RampedLoader(loader, settings.ramp, InputDropout(settings.input_dropout, seed, words.pad_id))
    held_out = held_out_documents(context.recipe, words, settings.documents)
    return ramped, tokens, held_out_rows(held_out, words, settings.row_length, settings.held_out_rows, seed)


@stage("pretrain", TextTrainingSettings, version=2, together=True)
def pretrain(context: StageContext[TextTrainingSettings]) -> dict[str, Any]:
    """Next-token training from random weights or an earlier stage's."""
    return train_on_text(context, next_token)


Prepare = Callable[[Loader], Callable[[Batch], Batch]]
"""From a loader to what makes an objective's batch of one of its batches."""


def _as_it_is(loader: Loader) -> Callable[[Batch], Batch]:
    return lambda batch: batch


def train_on_text(context: StageContext[Any], objective: Objective, prepare: Prepare = _as_it_is) -> dict[str, Any]:
    """Train a new model, or an earlier stage's, on the recipe's text, measuring on held-out rows."""
    settings: TextTrainingSettings = context.settings
    model: LanguageModel
    if settings.checkpoint is None:
        words = Tokenizer.load(context.output(settings.tokenizer, CHECKPOINT))
        model = Backbone(model_config(context.recipe, words))
        model.initialise(context.seed)
    else:
        model, words = load_checkpoint(context.output(settings.checkpoint, CHECKPOINT))
    loader, tokens, measured = text_rows(context, settings, words, context.seed)

    def measure(trainer: Trainer) -> dict[str, float]:
        numbers = held_out_loss(trainer.model, measured, words)
        trainer.notes.update(numbers)
        return numbers

    checks: dict[Look, int] = {measure: settings.measure_every} if len(measured.tokens) else {}
    if settings.evaluate.every:
        held_out = held_out_documents(context.recipe, words, settings.documents)
        count, length = settings.evaluate.prompts, settings.evaluate.prompt_tokens
        asked = openings(held_out, words, count, length, context.seed)
        checks[loop_look(settings.evaluate, words, asked)] = settings.evaluate.every
    trainer, result = _train_on_rows(context, model, words, loader, settings.training, checks, objective, prepare)
    averages = settings.training.optimizer.ema or settings.training.checkpoints.average
    if context.ranks.first and len(measured.tokens) and averages:
        averaged = load_model(context.folder / CHECKPOINT, compute_dtype())
        trainer.notes.update(held_out_loss(averaged, measured, words))
    return result | {"corpus_tokens": tokens} | trainer.notes


def _train_on_rows(
    context: StageContext[Any],
    model: LanguageModel,
    words: Tokenizer,
    loader: RampedLoader,
    training: TrainSettings,
    checks: dict[Look, int],
    objective: Objective = next_token,
    prepare: Prepare = _as_it_is,
) -> tuple[Trainer, dict[str, Any]]:
    """The trainer of a stage with ``rows`` and ``row_length`` after its last step, and the stage's result."""
    rows, length = context.settings.rows, context.settings.row_length
    say_what_runs_dry(loader.loader, loader.rows_before(training.steps), context.name)
    made = prepare(loader.loader)
    trainer = Trainer(
        model,
        objective,
        Prefetch(lambda step: [made(loader.batch(step, *context.ranks.data))]),
        settled(context, training, model, rows * length),
        context.record,
        context.state / "train.pt",
        context.ranks,
    )
    fit_machine(context.name, trainer, rows, length)
    vitals = Vitals(model, length, loader.epochs, [source.name for source in loader.loader.sources])
    result = train_stage(context, trainer, words, *looks(checks), vitals)
    passes = loader.loader.passes(loader.rows_before(trainer.done_steps))
    return trainer, result | {"epochs": loader.epochs(trainer.done_steps), "sources": passes}


@dataclass(frozen=True)
class SftSettings:
    """Fine-tuning on worked examples.

    Attributes:
        data: the ``chats`` stage whose conversations are trained on; none for the pocket world's tasks.
        examples: of the pocket world, per task.
        more: other numbers for some tasks; 0 leaves a task out.
        epochs: passes over all rows, in place of ``training.steps``.
        evaluate: greedy answers to loop-prone prompts, to see doom loops come and go.
    """

    checkpoint: Annotated[str, tyro.conf.Suppress] = stage_input("pretrain")
    data: Annotated[str | None, tyro.conf.Suppress] = stage_input(None)
    examples: Annotated[int, tyro.conf.Suppress] = 1500
    more: Annotated[dict[str, int], tyro.conf.Suppress] = field(default_factory=dict)
    epochs: float | None = None
    row_length: int = 256
    rows: int = 32
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    training: TrainSettings = field(default_factory=lambda: TrainSettings(steps=150))

    def __post_init__(self) -> None:
        _check_batch(self.row_length, self.rows)
        check_tasks(self.more)
        if self.epochs is not None and self.epochs <= 0:
            raise UserError(f"epochs is {self.epochs:g}; use a number above 0, or leave it out and give training.steps")


@stage("sft", SftSettings, version=2, together=True)
def sft(context: StageContext[SftSettings]) -> dict[str, Any]:
    """Train on conversations, or on the references of every task of the pocket world; on assistant tokens only."""
    settings = context.settings
    model, words = load_checkpoint(context.output(settings.checkpoint, CHECKPOINT))
    if settings.data is None:
        examples = task_examples(context.recipe, (), "train", settings.examples, settings.more)
        packed = pack((each.tokenised(words) for each in worked(examples)), settings.row_length, words.pad_id)
        loader = Loader(packed, settings.rows, context.seed)
    else:
        sources = read_chats(context.inputs[settings.data], settings.row_length, words.pad_id)
        loader = Loader(sources, settings.rows, context.seed)
    training = settings.training
    if settings.epochs is not None:
        training = replace(training, steps=max(1, round(settings.epochs * len(loader) / settings.rows)))
    checks: dict[Look, int] = {}
    if settings.evaluate.every:
        asked = chat_prompts(prompts_of(context.recipe).to_gate(0, settings.evaluate.prompts, 0)[0], words)
        checks[loop_look(settings.evaluate, words, asked)] = settings.evaluate.every
    return _train_on_rows(context, model, words, RampedLoader(loader, Ramp()), training, checks)[1]
