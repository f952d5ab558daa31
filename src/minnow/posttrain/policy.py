"""Group-relative RL on rewards with penalties for doom loops (GRPO family)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.measure import answer_groups, score
from minnow.loops import repeated_ngram_share
from minnow.posttrain.curriculum import StepRecord
from minnow.posttrain.pairs import cut_loop
from minnow.posttrain.rewards import earned, find_reward
from minnow.rollout.records import Engine, Rollout, Sampling
from minnow.tasks import Example
from minnow.train.objectives import pack_sequences
from minnow.train.policy_gradient import PolicyBatch


@dataclass(frozen=True)
class RolloutSettings:
    """One step's rollouts.

    Attributes:
        temperatures: one rollout of the group each. Loops live at low temperature: a group sampled at 1 alone never
            meets the loops that greedy decoding serves, so the group spans both.
        loop_penalty: subtracted from the reward of an answer that ends in a loop, by the detector's verdict.
        row_length: packed length of the training rows.
        rewards: weights of rewards by name (:mod:`minnow.posttrain.rewards`).
        ngram_penalty: subtracted times the share of ``ngram``-grams that occurred before, in any answer.
        penalties_by: share of the steps over which both penalties grow from nothing to their size.
        scale: ``group`` divides a group's advantages by the standard deviation of its rewards, which makes small
            differences as loud as large ones; ``none`` does not.
        dead_zone: groups whose rewards deviate by no more than this are dropped as if they were equal.
        mask_truncated: leave answers that ran out of tokens out of the loss (DAPO, arXiv 2503.14476). Then nothing
            teaches the policy to end: answers that end too early are punished and those that never do are not, until
            greedy ones do not end at all (docs/results/headline.md).
    """

    prompts: int = 32
    temperatures: tuple[float, ...] = (0.0, 0.3, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0)
    max_new_tokens: int = 384
    loop_penalty: float = 1.0
    periods_kept: int = 3
    row_length: int = 512
    rewards: dict[str, float] = field(default_factory=lambda: {"verifier": 1.0})
    ngram_penalty: float = 0.0
    ngram: int = 12
    penalties_by: float = 0.0
    scale: Literal["none", "group"] = "none"
    dead_zone: float = 0.0
    mask_truncated: bool = False

    def __post_init__(self) -> None:
        if len(self.temperatures) < 2:
            raise UserError("temperatures names fewer than 2 rollouts; a group needs some to compare")
        if not 8 <= self.ngram <= 20:
            raise UserError(
                f"ngram is {self.ngram}; use 8 to 20: shorter ones punish a good table harder than a doom loop"
            )
        if not self.rewards or not 0 <= self.penalties_by <= 1 or self.dead_zone < 0:
            raise UserError("rewards needs at least one, penalties_by lies between 0 and 1, dead_zone is not negative")
        for name in self.rewards:
            find_reward(name)


def reward(example: Example, rollout: Rollout, settings: RolloutSettings, progress: float = 1.0) -> float:
    """What an answer earns, less the penalties at ``progress`` (0 to 1) of the steps."""
    penalty = settings.loop_penalty if rollout.finish_reason == "loop" else 0.0
    if settings.ngram_penalty:
        penalty += settings.ngram_penalty * repeated_ngram_share(rollout.token_ids, settings.ngram)
    grown = min(1.0, progress / settings.penalties_by) if settings.penalties_by else 1.0
    return earned(example, rollout, settings.rewards) - grown * penalty


def advantages(rewards: torch.Tensor, scale: str = "none", dead_zone: float = 0.0) -> torch.Tensor:
    """Rewards ``[P, G]`` minus their group's mean, zero in a group that deviates by ``dead_zone`` at most."""
    distance = rewards - rewards.mean(dim=1, keepdim=True)
    deviation = rewards.std(dim=1, keepdim=True)
    if scale == "group":
        distance = distance / (deviation + 1e-4)
    return distance.masked_fill(deviation <= max(dead_zone, 1e-6), 0.0)


@dataclass
class RolloutStep:
    """A training batch, what was seen while making it, and what the curriculum learns from it."""

    batch: PolicyBatch | None
    numbers: dict[str, float]
    record: StepRecord


def rollout_step(
    engine: Engine,
    tokenizer: Tokenizer,
    examples: Sequence[Example],
    settings: RolloutSettings,
    seed: int,
    progress: float = 1.0,
) -> RolloutStep:
    """Sample a group per prompt, reward it, and pack what carries a signal.

    Groups whose rewards are all equal are dropped. An answer that loops stays in, cut a few periods past its onset.

    Args:
        progress: share of the steps that are done, for penalties that grow.
    """
    base = Sampling(0.0, settings.max_new_tokens, seed, persistence=0)
    arms = answer_groups(engine, tokenizer, examples, [replace(base, temperature=t) for t in settings.temperatures])
    groups = list(zip(*arms, strict=True))
    rewards = torch.tensor(
        [[reward(e, r, settings, progress) for r in group] for e, group in zip(examples, groups, strict=True)]
    )
    every = [rollout for group in groups for rollout in group]
    numbers: dict[str, Any] = {
        "reward": float(rewards.mean()),
        "loops": sum(r.finish_reason == "loop" for r in every) / len(every),
        "truncated": sum(r.finish_reason == "length" for r in every) / len(every),
        "tokens": sum(len(r.token_ids) for r in every) / len(every),
    }
    record = StepRecord(
        _successes(examples, groups),
        float(rewards[0, 0]) if float(rewards.max() - rewards.min()) < 1e-6 else None,
        numbers["truncated"],
    )
    prompts, completions, known, weights = [], [], [], []
    for group, row in zip(groups, advantages(rewards, settings.scale, settings.dead_zone).tolist(), strict=True):
        for rollout, advantage in zip(group, row, strict=True):
            if abs(advantage) < 1e-6 or (settings.mask_truncated and rollout.finish_reason == "length"):
                continue
            ids = cut_loop(rollout, settings.periods_kept)
            prompts.append(rollout.prompt_ids)
            completions.append(ids)
            known.append(rollout.log_probs[: len(ids)])
            weights.append(advantage)
    numbers["trained"] = float(len(weights))
    if not weights:
        return RolloutStep(None, numbers, record)
    packed = pack_sequences(prompts, completions, settings.row_length, known)
    batch = PolicyBatch(**vars(packed), advantages=torch.tensor(weights), budget=settings.max_new_tokens)
    return RolloutStep(batch, numbers, record)


def _successes(examples: Sequence[Example], groups: Sequence[Sequence[Rollout]]) -> dict[str, tuple[int, int]]:
    """Correct answers and answers by task."""
    found: dict[str, tuple[int, int]] = {}
    for example, group in zip(examples, groups, strict=True):
        correct, count = found.get(example.task, (0, 0))
        right = sum(score(example, rollout).correct for rollout in group)
        found[example.task] = (correct + right, count + len(group))
    return found
