"""The stage in which a larger model corrects the student's own answers: on-policy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from minnow.data.rows import Batch
from minnow.evaluate.measure import answer
from minnow.model.checkpoint import load_checkpoint
from minnow.posttrain.pairs import cut_loop
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.alignment import GateSettings, gentle, post_train
from minnow.recipe.stages.prompts import prompts_of
from minnow.recipe.stages.sources import CHECKPOINT, frozen_teacher
from minnow.rollout import Sampling, TorchEngine
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import pack_sequences, split_rows
from minnow.train.on_policy import OnPolicyDistillation, OnPolicySettings


@dataclass(frozen=True)
class OnPolicyStageSettings:
    """On-policy distillation.

    Attributes:
        teacher: checkpoint folder of a model with the student's tokenizer.
        prompts: answers of the student in each step, of which ``loop_share`` are to loop-prone prompts.
        periods_kept: copies of a loop that an answer keeps.
        row_length: packed length of the training rows, ``rows_at_once`` of them in a micro-batch.
    """

    checkpoint: str = stage_input("sft")
    teacher: Path = field(kw_only=True)
    objective: OnPolicySettings = field(default_factory=OnPolicySettings)
    prompts: int = 64
    loop_share: float = 0.5
    temperature: float = 1.0
    max_new_tokens: int = 384
    periods_kept: int = 3
    row_length: int = 512
    rows_at_once: int = 32
    training: TrainSettings = field(default_factory=lambda: gentle(40))
    gate: GateSettings = field(default_factory=GateSettings)


@stage("on-policy", OnPolicyStageSettings)
def on_policy(context: StageContext[OnPolicyStageSettings]) -> dict[str, Any]:
    """Sample the student, and train each of its tokens towards what the teacher expects there."""
    settings = context.settings
    model, words = load_checkpoint(context.output(settings.checkpoint, CHECKPOINT))
    teacher = frozen_teacher(settings.teacher, words)
    prompts = prompts_of(context.recipe)
    asked = prompts.to_explore(settings.training.steps, settings.prompts, settings.loop_share, settings.gate.first)

    def batches(step: int) -> Sequence[Batch]:
        sampling = Sampling(settings.temperature, settings.max_new_tokens, context.seed + step, persistence=0)
        rollouts = answer(engine, words, asked(step), sampling)
        looping = sum(rollout.finish_reason == "loop" for rollout in rollouts) / len(rollouts)
        context.record(
            step=step + 1, loops=looping, tokens_per_answer=sum(len(r.token_ids) for r in rollouts) / len(rollouts)
        )
        answers = [cut_loop(rollout, settings.periods_kept) for rollout in rollouts]
        packed = pack_sequences([rollout.prompt_ids for rollout in rollouts], answers, settings.row_length)
        return split_rows(Batch(packed.tokens, packed.targets, packed.documents), settings.rows_at_once)

    objective = OnPolicyDistillation(settings.objective, teacher, words.vocab_size)
    training = replace(settings.training, spike=0.0)  # each step asks about other answers
    trainer = Trainer(model, objective, batches, training, context.record, context.state / "train.pt")
    engine = TorchEngine(model, words)
    return post_train(context, trainer, words, settings.gate)
