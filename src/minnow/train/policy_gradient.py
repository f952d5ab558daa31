"""Group-relative policy gradients: GRPO and what grew out of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.language_model import LanguageModel
from minnow.train.objectives import Loss, SequenceBatch, completion_log_probs, per_sequence_sum


@dataclass
class PolicyBatch(SequenceBatch):
    """Sampled completions and what they earned.

    Attributes:
        reference: under the policy that sampled.
        advantages: ``[S]``, one per completion.
        budget: tokens a completion may have, by which ``dr_grpo`` divides.
        anchor: ``[rows, T]`` log-probabilities under the policy that ``kl`` holds on to; None for the one that sampled.
    """

    splits: ClassVar[bool] = True

    advantages: Tensor
    budget: int = 0
    anchor: Tensor | None = None


@dataclass(frozen=True)
class PolicyGradient:
    """Clipped policy gradient on advantages that stand for whole completions.

    ``-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A) + kl r (exp(d) - d - 1)`` per token, with ``r`` the ratio to the
    sampling policy and ``d`` the log-ratio of the anchor to the policy; the ``r`` on the divergence makes its gradient
    unbiased (DeepSeek-V3.2, arXiv 2512.02556).

    Attributes:
        loss: how token losses are averaged, by TRL's names: ``dapo`` over all tokens (arXiv 2503.14476; ``bnpo`` is
            the same here, where micro-batches add up exactly), ``grpo`` over each completion and then over
            completions, ``dr_grpo`` over completions times their budget (arXiv 2503.20783), so that length is neither
            rewarded nor punished.
        ratio: ``token``, or ``sequence`` for the geometric mean of a completion's ratios (GSPO, arXiv 2507.18071).
        clip_low, clip_high: apart, so that rare tokens can gain faster than likely ones lose (DAPO's clip-higher).
        importance_cap: where the engine that sampled does not compute as training does (quantised, another program):
            the ratio is to the policy at the start of the update, and each token's loss is weighted with the ratio of
            that to the sampling policy, at most this (truncated importance sampling). For one update per batch. 0: off.
    """

    loss: Literal["dapo", "bnpo", "grpo", "dr_grpo"] = "dapo"
    ratio: Literal["token", "sequence"] = "token"
    clip_low: float = 0.2
    clip_high: float = 0.28
    kl: float = 0.0
    importance_cap: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.clip_low < 1 or min(self.clip_high, self.kl, self.importance_cap) < 0:
            raise UserError(
                f"clip_low is {self.clip_low:g}, clip_high {self.clip_high:g}, kl {self.kl:g} and importance_cap "
                f"{self.importance_cap:g}; none can be negative, and clip_low must be below 1"
            )

    def __call__(self, model: LanguageModel, batch: PolicyBatch) -> Loss:
        log_probs = completion_log_probs(model, batch)
        trained = batch.trained
        place = batch.sequences[trained]
        old = log_probs.detach() if self.importance_cap else batch.reference
        difference = log_probs - old
        if self.ratio == "sequence":
            ratio = (per_sequence_sum(difference, batch) / batch.lengths).exp()[place]
        else:
            ratio = difference[trained].exp()
        advantage = batch.advantages[place]
        clipped = ratio.clamp(1 - self.clip_low, 1 + self.clip_high)
        loss = -torch.minimum(ratio * advantage, clipped * advantage)
        if self.importance_cap:
            loss = loss * (log_probs.detach() - batch.reference)[trained].exp().clamp(max=self.importance_cap)
        if self.kl:
            away = ((batch.reference if batch.anchor is None else batch.anchor) - log_probs)[trained]
            loss = loss + self.kl * ratio * (away.exp() - away - 1)
        completions = float(len(place.unique()))
        each = 1 / batch.lengths[place]  # over a completion's tokens 1 in sum
        share, seen, weight = {
            "grpo": (each, each, completions),
            "dr_grpo": (torch.ones_like(each), each * batch.budget, completions * batch.budget),
        }.get(self.loss, (torch.ones_like(each), torch.ones_like(each), float(len(place))))
        metrics = {
            "clipped": float(((ratio != clipped) * seen).sum()),
            "ratio": float((ratio.detach() * seen).sum()),
        }
        return Loss((loss * share).sum(), weight, metrics)
