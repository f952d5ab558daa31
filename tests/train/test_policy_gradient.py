"""Policy gradients against their formulas, token by token in float64, and what micro-batches must not change."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from sequence_cases import assert_equal_losses, drawn, gradients_of, naive_log_probs
from torch import Tensor

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.train.objectives import next_token, pack_sequences, split_rows
from minnow.train.policy_gradient import PolicyBatch, PolicyGradient

ADVANTAGES = [1.0, -1.0, 0.5, -0.25, 2.0, -2.0]
BUDGET = 12


def drifted(model: Backbone, prompts: list, completions: list, scale: float = 0.4) -> list[list[float]]:
    """Log-probabilities of the completions under a policy that is ``scale`` away, token by token."""
    return [
        (naive_log_probs(model, p, c).detach() + scale * torch.randn(len(c), generator=torch.Generator().manual_seed(i)))
        .tolist()
        for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
    ]  # fmt: skip


def policy_batch(prompts: list, completions: list, reference: list, advantages: list[float], width: int) -> PolicyBatch:
    packed = pack_sequences(prompts, completions, width, reference)
    return PolicyBatch(**vars(packed), advantages=torch.tensor(advantages), budget=BUDGET)


def formula(
    settings: PolicyGradient, policy: list[Tensor], known: list[list[float]], anchor: list[list[float]]
) -> Tensor:
    """The mean loss, from log-probabilities of every completion's tokens."""
    sequences = []
    for log_probs, old, start, advantage in zip(policy, known, anchor, ADVANTAGES, strict=True):
        sampled, start = torch.tensor(old).double(), torch.tensor(start).double()
        old = log_probs.detach() if settings.importance_cap else sampled
        ratios = torch.exp(log_probs - old)
        if settings.ratio == "sequence":
            ratios = torch.exp((log_probs - old).mean()).expand(len(old))
        terms = []
        for place, ratio in enumerate(ratios):
            value = float(ratio.detach())
            bounded = min(max(value, 1 - settings.clip_low), 1 + settings.clip_high)
            term = -(ratio * advantage if value * advantage <= bounded * advantage else bounded * advantage)
            if settings.importance_cap:
                term = term * min(
                    math.exp(float((log_probs[place] - sampled[place]).detach())), settings.importance_cap
                )
            away = start[place] - log_probs[place]
            terms.append(term + settings.kl * ratio * (torch.exp(away) - away - 1))
        sequences.append(torch.stack(list(map(torch.as_tensor, terms))))
    match settings.loss:
        case "grpo":
            return torch.stack([terms.mean() for terms in sequences]).mean()
        case "dr_grpo":
            return torch.cat(sequences).sum() / (len(sequences) * BUDGET)
    return torch.cat(sequences).mean()


@pytest.mark.parametrize(
    "settings",
    [
        PolicyGradient(),
        PolicyGradient("bnpo", kl=0.3),
        PolicyGradient("grpo", clip_low=0.1, clip_high=0.5),
        PolicyGradient("dr_grpo", kl=0.1),
        PolicyGradient("grpo", "sequence", clip_low=0.05, clip_high=0.1),
        PolicyGradient("dapo", "sequence", clip_low=0.1, clip_high=0.02),
        PolicyGradient("dapo", importance_cap=1.1),
        PolicyGradient("grpo", importance_cap=2.0, kl=0.1),
    ],
    ids=str,
)
def test_values_and_gradients_are_the_formulas(make_model: Callable[..., Backbone], settings: PolicyGradient) -> None:
    model = make_model().double()
    prompts, completions = drawn(6)
    known, anchor = drifted(model, prompts, completions), drifted(model, prompts, completions, 0.2)
    batch = policy_batch(prompts, completions, known, ADVANTAGES, 24)
    batch.anchor = batch.placed(anchor)
    policy = [naive_log_probs(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    loss = settings(model, batch)
    clipped = loss.metrics["clipped"]
    assert clipped == 0 if settings.importance_cap else clipped > 0
    assert_equal_losses(model, loss, formula(settings, policy, known, anchor))


def test_without_an_anchor_the_divergence_is_from_the_policy_that_sampled(make_model: Callable[..., Backbone]) -> None:
    model = make_model().double()
    prompts, completions = drawn(6)
    known = drifted(model, prompts, completions)
    batch = policy_batch(prompts, completions, known, ADVANTAGES, 24)
    policy = [naive_log_probs(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    settings = PolicyGradient(kl=0.3)
    assert_equal_losses(model, settings(model, batch), formula(settings, policy, known, known))


@pytest.mark.parametrize(
    "objective",
    [PolicyGradient(kl=0.1), PolicyGradient("grpo", "sequence"), PolicyGradient("dr_grpo"), next_token],
    ids=["dapo", "sequence", "dr_grpo", "next_token"],
)
def test_micro_batches_of_unequal_size_add_up(make_model: Callable[..., Backbone], objective: Callable) -> None:
    model = make_model().double()
    prompts, completions = drawn(9)
    known = drifted(model, prompts, completions)
    whole = policy_batch(prompts, completions, known, [(-1.0) ** i for i in range(9)], 20)
    whole.anchor = whole.reference - 0.1
    parts = split_rows(whole, 2)
    assert len({len(part.tokens) for part in parts}) == 2, "the last micro-batch is smaller"
    one, others = objective(model, whole), [objective(model, part) for part in parts]
    assert sum(loss.weight for loss in others) == one.weight
    for name in one.metrics:
        assert sum(loss.metrics[name] for loss in others) == pytest.approx(one.metrics[name])
    wanted = gradients_of(model, one.total)
    total = torch.stack([loss.total for loss in others]).sum()
    torch.testing.assert_close(total, one.total.detach())
    for mine, theirs in zip(gradients_of(model, total), wanted, strict=True):
        torch.testing.assert_close(mine, theirs)


def test_settings_that_mean_nothing_are_refused() -> None:
    for wrong in ({"clip_low": 1.0}, {"clip_high": -0.1}, {"kl": -1.0}, {"importance_cap": -1.0}):
        with pytest.raises(UserError, match="none can be negative"):
            PolicyGradient(**wrong)
