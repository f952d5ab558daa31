"""One rung of a scaling sweep: a size trained once, with a decay branched off for every number of tokens.

The trunk is a warm-up and a flat rate. A run of T steps is the trunk up to its last ``decay * T`` steps and a branch
that decays over those, step for step what a run of its own would be (arXiv 2405.18392), at a fraction of the cost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.text import held_out_loss
from minnow.files import read_json, whole_file, write_json
from minnow.model.accounting import parameter_parts
from minnow.model.backbone import Backbone
from minnow.recipe.context import Metrics, StageContext
from minnow.recipe.registry import named_inputs, stage
from minnow.recipe.schema import ModelSettings
from minnow.recipe.stages.sources import CHECKPOINT, model_config
from minnow.recipe.stages.training import TextTrainingSettings, set_threads, settled, text_rows, train
from minnow.recipe.vitals import Vitals
from minnow.train.batches import Prefetch
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token

_GRAIN = 32  # widths are multiples of it, for quantisation and fast products
_FEWEST_STEPS = 10  # of a run: below that, warm-up and decay have no room


@dataclass(frozen=True)
class LadderSettings:
    """A size and its runs.

    Attributes:
        width: hidden size; the recipe's model is scaled to it, its depth stays.
        ratios: tokens per parameter of the runs, rising.
        rate_exponent: the peak rate is the recipe's times ``(recipe's width / width) ** rate_exponent``.
        text: as of a pretrain stage; its ``training.steps`` follow from the ratios.
    """

    width: int
    ratios: tuple[float, ...]
    rate_exponent: float = 0.5
    text: TextTrainingSettings = field(default_factory=TextTrainingSettings)

    def __post_init__(self) -> None:
        if self.width < _GRAIN or self.width % _GRAIN:
            raise UserError(f"a width of {self.width} is no multiple of {_GRAIN}; use {_GRAIN}, {2 * _GRAIN}, ...")
        if not self.ratios or min(self.ratios) <= 0 or list(self.ratios) != sorted(set(self.ratios)):
            raise UserError(f"ratios are {list(self.ratios)}; give positive, rising numbers of tokens per parameter")
        if not 0 < self.text.training.decay <= 1:
            raise UserError(f"decay is {self.text.training.decay:g}; a branch needs a share above 0 and up to 1")
        if self.text.ramp.steps:
            raise UserError("the runs of a ladder share a trunk of equal steps; leave ramp out")
        if self.text.checkpoint is not None:
            raise UserError("the runs of a ladder start from random weights; leave checkpoint out")


@dataclass(frozen=True)
class Branch:
    """A run of ``steps`` steps that leaves the trunk at step ``start``."""

    ratio: float
    start: int
    steps: int


def branches(ratios: Sequence[float], parameters: int, tokens_per_step: float, decay: float) -> list[Branch]:
    """The runs that give each ratio, shortest first.

    Args:
        tokens_per_step: padding left out.
        decay: share of each run's steps.

    Raises:
        UserError: a run would be too short for its warm-up and decay.
    """
    found = []
    for ratio in ratios:
        steps = round(ratio * parameters / tokens_per_step)
        if steps < _FEWEST_STEPS:
            raise UserError(
                f"{ratio:g} tokens for each of {parameters:,} parameters are {steps} steps of {tokens_per_step:,.0f} "
                f"tokens, fewer than {_FEWEST_STEPS}; raise the ratio or lower stages.pretrain.rows"
            )
        found.append(Branch(ratio, steps - max(1, round(decay * steps)), steps))
    return found


def train_branch(run: Branch, name: str, state: Path, part: Callable[[str, int, int, Path], Trainer]) -> Trainer:
    """Train the trunk to where ``run`` leaves it, and the run from there; an interrupted one goes on.

    Args:
        state: the run's training state, for the caller to remove once the result is kept; ``trunk.pt`` lies beside it.
        part: trains a part of that name up to so many steps, its rate falling from the second number on, from a state and
            into it.
    """
    if run.start and not state.exists():
        trunk = state.with_name("trunk.pt")
        part("trunk", run.start, run.start, trunk)
        with whole_file(state) as temporary:
            shutil.copyfile(trunk, temporary)
    return part(name, run.steps, run.start, state)


def scaled(model: ModelSettings, width: int) -> ModelSettings:
    """``model`` at another width: the same layers and head size, feed-forward and heads in proportion."""
    share = width / model.hidden_size
    heads = max(1, round(model.heads * share))
    most = max(1, round(model.kv_heads * share))
    return replace(
        model,
        hidden_size=width,
        intermediate_size=max(_GRAIN, round(model.intermediate_size * share / _GRAIN) * _GRAIN),
        heads=heads,
        kv_heads=max(count for count in range(1, most + 1) if heads % count == 0),
    )


def peak_rate(model: ModelSettings, settings: LadderSettings) -> float:
    """The learning rate for the settings' width."""
    base = settings.text.training.optimizer.learning_rate
    return float(base * (model.hidden_size / settings.width) ** settings.rate_exponent)


@stage("ladder", LadderSettings, needs=lambda settings, earlier: named_inputs(settings.text, earlier), version=2)
def ladder(context: StageContext[LadderSettings]) -> dict[str, Any]:
    """Train the trunk and its branches, shortest first; every branch is a row of ``points``."""
    settings, recipe = context.settings, context.recipe
    text = settings.text
    words = Tokenizer.load(context.output(text.tokenizer, CHECKPOINT))
    # One seed for all sizes: they read the same rows in the same order and are measured on the same ones.
    loader, unique, measured = text_rows(context, text, words, recipe.seed)
    config = model_config(replace(recipe, model=scaled(recipe.shape, settings.width)), words)
    parts = parameter_parts(config)
    size = sum(parts.values())
    runs = branches(settings.ratios, size, text.rows * unique / len(loader.loader), text.training.decay)
    rate = peak_rate(recipe.shape, settings)
    warmup = text.training.warmup * runs[0].steps  # the same for all, as they share the trunk

    def part(name: str, steps: int, start: int, state: Path) -> Trainer:
        """Train up to ``steps``, from ``state`` where it exists, with the rate falling from ``start`` on."""
        model = Backbone(config)
        model.initialise(context.seed)
        metrics = Metrics(context.folder / f"{name}.jsonl")
        schedule: TrainSettings = replace(
            text.training,
            steps=steps,
            schedule="wsd",
            warmup=warmup / steps,
            decay=(steps - start) / steps,
            optimizer=replace(text.training.optimizer, learning_rate=rate),
        )
        schedule = settled(context, schedule, model, text.rows * text.row_length)
        trainer = Trainer(
            model, next_token, Prefetch(lambda step: [loader.batch(step)]), schedule, metrics.record, state
        )
        # A check makes the trainer save its state at the end, which is where branches start.
        vitals = Vitals(model, text.row_length, loader.epochs)
        train(trainer, f"{context.name} {name}", metrics, lambda trainer: True, vitals=vitals)
        return trainer

    set_threads(context)
    finished = context.state / "points.json"
    points: list[dict[str, Any]] = read_json(finished) if finished.exists() else []
    for run in runs[len(points) :]:
        name = f"branch-{run.steps}"
        state = context.state / f"{name}.pt"
        trainer = train_branch(run, name, state, part)
        numbers = held_out_loss(trainer.model, measured, words)
        points.append(
            {
                "params": size,
                "params_no_embed": size - parts["embedding"],
                "tokens": trainer.tokens,
                "loss": numbers["held_out_loss"],
                "bits_per_byte": numbers["bits_per_byte"],
                "unique": min(unique, trainer.tokens),
                "width": settings.width,
                "ratio": run.ratio,
                "steps": run.steps,
                "learning_rate": rate,
            }
        )
        write_json(finished, points)
        state.unlink()
    return {"parameters": size, "corpus_tokens": unique, "points": points}
