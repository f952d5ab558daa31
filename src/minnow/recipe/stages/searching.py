"""The stage that trains looking things up by reinforcement: lookups-rl."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import torch

from minnow.agent import Limits
from minnow.agent.expert import MOST_TRAPS, Library
from minnow.agent.lookup_rewards import LookupRewards, Turns, lookup_groups
from minnow.errors import UserError
from minnow.model.checkpoint import load_checkpoint
from minnow.posttrain.policy import advantages
from minnow.recipe.context import StageContext
from minnow.recipe.registry import stage, stage_input
from minnow.recipe.stages.alignment import gentle
from minnow.recipe.stages.sources import CHECKPOINT
from minnow.recipe.stages.training import train_stage
from minnow.rollout import Sampling, TorchEngine
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import pack_sequences, split_rows
from minnow.train.policy_gradient import PolicyBatch, PolicyGradient


@dataclass(frozen=True)
class LookupsRlSettings:
    """Conversations about made-up worlds, in which ever more pages have a misleading one beside them.

    Attributes:
        questions: of one to three hops in a step, each asked ``group`` times at ``temperature``.
        steps_in_world: after so many another world comes.
        row_length: packed length of the training rows; ``rows_at_once``: such rows in a micro-batch.
    """

    checkpoint: str = stage_input("sft")
    objective: PolicyGradient = field(default_factory=PolicyGradient)
    rewards: LookupRewards = field(default_factory=LookupRewards)
    questions: int = 16
    group: int = 8
    temperature: float = 1.0
    steps_in_world: int = 5
    max_calls: int = 5
    max_new_tokens: int = 64
    row_length: int = 512
    rows_at_once: int = 16
    training: TrainSettings = field(default_factory=lambda: gentle(20))

    def __post_init__(self) -> None:
        if self.group < 2 or self.questions < 1 or self.steps_in_world < 1 or self.temperature <= 0:
            raise UserError(
                f"group is {self.group}, questions {self.questions}, steps_in_world {self.steps_in_world} and temperature "
                f"{self.temperature:g}; a group needs 2 answers that differ, and the others at least 1"
            )


def policy_batch(groups: Sequence[Sequence[Turns]], row_length: int, budget: int) -> PolicyBatch | None:
    """All turns of the conversations that did better or worse than the rest of their group; None without any."""
    rewards = torch.tensor([[each.reward for each in group] for group in groups])
    kept = [
        (turn, advantage)
        for group, row in zip(groups, advantages(rewards).tolist(), strict=True)
        for each, advantage in zip(group, row, strict=True)
        for turn in each.turns
        if abs(advantage) > 1e-6 and turn.finish_reason == "stop"
    ]
    if not kept:
        return None
    turns = [turn for turn, _ in kept]
    packed = pack_sequences(
        [turn.prompt_ids for turn in turns],
        [turn.token_ids for turn in turns],
        row_length,
        [turn.log_probs for turn in turns],
    )
    return PolicyBatch(**vars(packed), advantages=torch.tensor([each for _, each in kept]), budget=budget)


@stage("lookups-rl", LookupsRlSettings, uses=("seed",))
def lookups_rl(context: StageContext[LookupsRlSettings]) -> dict[str, Any]:
    """On-policy conversations with the search tool; rewards for the answer, the evidence and thrift."""
    settings, steps = context.settings, context.settings.training.steps
    model, words = load_checkpoint(context.output(settings.checkpoint, CHECKPOINT))
    engine = TorchEngine(model, words)
    limits = Limits(settings.max_calls, settings.max_new_tokens, max_context=model.config.max_positions)
    worlds: dict[int, Library] = {}

    def batches(step: int) -> Sequence[Any]:
        number = step // settings.steps_in_world
        if number not in worlds:
            worlds.clear()
            worlds[number] = Library(f"{context.seed}/rl/{number}", "train", step / steps * MOST_TRAPS)
        rng = Random(f"{context.seed}/rl/{step}")
        asked = worlds[number].questions(settings.questions, rng)
        sampling = Sampling(settings.temperature, settings.max_new_tokens, context.seed + step, persistence=0)
        groups = lookup_groups(engine, words, worlds[number], asked, settings.group, limits, sampling, settings.rewards)
        batch = policy_batch(groups, settings.row_length, settings.max_new_tokens)
        earned = [each.reward for group in groups for each in group]
        trained = 0 if batch is None else len(batch.advantages)
        context.record(step=step + 1, reward=sum(earned) / len(earned), turns=trained)
        return [] if batch is None else split_rows(batch, settings.rows_at_once)

    training = replace(settings.training, spike=0.0)  # the loss of a policy gradient has no level
    trainer = Trainer(model, settings.objective, batches, training, context.record, context.state / "train.pt")
    return train_stage(context, trainer, words)
