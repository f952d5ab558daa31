"""Group-relative RL on verifiable rewards with a penalty for doom loops (GRPO family)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.measure import answer_groups, score
from minnow.posttrain.pairs import cut_loop
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
        loop_penalty: subtracted from the reward (0) of an answer that ends in a loop.
        row_length: packed length of the training rows.
    """

    prompts: int = 32
    temperatures: tuple[float, ...] = (0.0, 0.3, 0.6, 0.8, 1.0, 1.0, 1.0, 1.0)
    max_new_tokens: int = 384
    loop_penalty: float = 1.0
    periods_kept: int = 3
    row_length: int = 512


def reward(example: Example, rollout: Rollout, loop_penalty: float) -> float:
    """Mean of the verifier's value and verdict, minus the penalty when the detector says the answer loops.

    The value alone hardly tells a good long answer from one with a single fault.
    """
    found = score(example, rollout)
    return (found.value + found.correct) / 2 - (loop_penalty if rollout.finish_reason == "loop" else 0.0)


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Rewards ``[P, G]`` minus their group's mean; never divided by the spread, which would blow up small gaps."""
    return rewards - rewards.mean(dim=1, keepdim=True)


@dataclass
class RolloutStep:
    """A training batch and what was seen while making it."""

    batch: PolicyBatch | None
    numbers: dict[str, float]


def rollout_step(
    engine: Engine, tokenizer: Tokenizer, examples: Sequence[Example], settings: RolloutSettings, seed: int
) -> RolloutStep:
    """Sample a group per prompt, reward it, and pack what carries a signal.

    Groups whose rewards are all equal are dropped. A truncated answer that does not loop is left out of the loss
    (it was not finished, not wrong); a loop stays in, cut a few periods past its onset.
    """
    base = Sampling(0.0, settings.max_new_tokens, seed, persistence=0)
    arms = answer_groups(engine, tokenizer, examples, [replace(base, temperature=t) for t in settings.temperatures])
    groups = list(zip(*arms, strict=True))
    rewards = torch.tensor(
        [[reward(e, r, settings.loop_penalty) for r in group] for e, group in zip(examples, groups, strict=True)]
    )
    every = [rollout for group in groups for rollout in group]
    numbers: dict[str, Any] = {
        "reward": float(rewards.mean()),
        "loops": sum(r.finish_reason == "loop" for r in every) / len(every),
        "truncated": sum(r.finish_reason == "length" for r in every) / len(every),
        "tokens": sum(len(r.token_ids) for r in every) / len(every),
    }
    prompts, completions, known, weights = [], [], [], []
    for group, row in zip(groups, advantages(rewards).tolist(), strict=True):
        for rollout, advantage in zip(group, row, strict=True):
            if abs(advantage) < 1e-6 or rollout.finish_reason == "length":
                continue
            ids = cut_loop(rollout, settings.periods_kept)
            prompts.append(rollout.prompt_ids)
            completions.append(ids)
            known.append(rollout.log_probs[: len(ids)])
            weights.append(advantage)
    numbers["trained"] = float(len(weights))
    if not weights:
        return RolloutStep(None, numbers)
    packed = pack_sequences(prompts, completions, settings.row_length, known)
    batch = PolicyBatch(**vars(packed), advantages=torch.tensor(weights), budget=settings.max_new_tokens)
    return RolloutStep(batch, numbers)
