"""The stage that makes a model lose less by four-bit weights: quantise."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import tyro

from minnow.data.loader import Loader
from minnow.data.packing import pack
from minnow.device.parity import own_sequences
from minnow.evaluate.measure import answer
from minnow.model.checkpoint import load_checkpoint
from minnow.posttrain.pairs import cut_loop
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.alignment import GateSettings, gentle, post_train
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.rollout import Sampling, TorchEngine
from minnow.train.distillation import Distillation, DistillationSettings
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.precision import compute_dtype
from minnow.train.quantised import BlockType


@dataclass(frozen=True)
class QuantiseSettings:
    """Quantisation-aware fine-tuning: the rounded model learns from the one that it was.

    Attributes:
        type: of the file that the weights are rounded for.
        answers: of the model to prompts before training, of which ``loop_share`` are loop-prone; it learns on the prompts
            and its own answers, with its own distributions as targets.
        texts: of ``row_length`` tokens that it writes from nothing and learns on beside: answers cover little of what it
            knows, and trained on them alone it forgets the rest.
        periods_kept: copies of a loop that an answer keeps.
    """

    checkpoint: Annotated[str, tyro.conf.Suppress] = stage_input("merge")
    type: BlockType = "Q4_0"
    distillation: DistillationSettings = field(default_factory=lambda: DistillationSettings(64, 1.0, 1.0))
    answers: int = 512
    texts: int = 1536
    loop_share: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 384
    periods_kept: int = 3
    row_length: int = 512
    rows: int = 4
    training: TrainSettings = field(default_factory=lambda: gentle(800))
    gate: GateSettings = field(default_factory=lambda: GateSettings(every=200))


@stage("quantise", QuantiseSettings, version=2)
def quantise(context: StageContext[QuantiseSettings]) -> dict[str, Any]:
    """Let the model answer prompts and write, then train it as its file will round it towards what it expected there."""
    settings = context.settings
    checkpoint = context.output(settings.checkpoint, CHECKPOINT)
    model, words = load_checkpoint(checkpoint)
    teacher, _ = load_checkpoint(checkpoint, compute_dtype())
    teacher.eval().requires_grad_(False)
    asked = prompts_of(context.recipe).to_explore(1, settings.answers, settings.loop_share, settings.gate.first)(0)
    sampling = Sampling(settings.temperature, settings.max_new_tokens, context.seed, persistence=0)
    rollouts = answer(TorchEngine(teacher, words), words, asked, sampling)
    taught = [rollout.prompt_ids + [*cut_loop(rollout, settings.periods_kept)] for rollout in rollouts]
    taught += own_sequences(teacher, words, settings.texts, settings.row_length, context.seed)
    loader = Loader(
        pack([(ids, None) for ids in taught], settings.row_length, words.pad_id), settings.rows, context.seed
    )
    trainer = Trainer(
        model,
        Distillation(settings.distillation, teacher),
        lambda step: [loader.batch(step)],
        replace(settings.training, quantised=settings.type),
        context.record,
        context.state / "train.pt",
    )
    # Loops and scores hardly tell rounded weights from trained ones: by them alone the first look may be the best.
    return post_train(context, trainer, words, settings.gate, steady=True)
