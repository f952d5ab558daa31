"""Preference objectives against their formulas, pair by pair in float64."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sequence_cases import assert_equal_losses, drawn, naive_log_probs
from torch import Tensor

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, CONV
from minnow.train.objectives import completion_log_probs
from minnow.train.preference import (
    AnswerPair,
    FinalToken,
    PairBatch,
    Preference,
    final_token_batch,
    pair_batch,
)


def drawn_pairs(count: int, onset: int | None = None) -> list[AnswerPair]:
    prompts, answers = drawn(2 * count)
    return [AnswerPair(prompts[2 * i], answers[2 * i], [*answers[2 * i + 1], 20, 21], onset) for i in range(count)]


def with_reference(batch: PairBatch, reference: Backbone) -> PairBatch:
    batch.reference = completion_log_probs(reference, batch).detach()
    return batch


def log_sigmoid(value: Tensor) -> Tensor:
    return -torch.log1p(torch.exp(-value))


def formula(loss: str, beta: float, margin: float, policy: list[Tensor], known: list[Tensor]) -> Tensor:
    """Of one pair, from the log-probabilities of its chosen and its rejected answer's tokens."""
    chosen, rejected = (p - k for p, k in zip(policy, known, strict=True))
    if loss == "sigmoid_norm":
        return -log_sigmoid(beta * (chosen.sum() / len(chosen) - rejected.sum() / len(rejected)))
    if loss == "sigmoid":
        return -log_sigmoid(beta * (chosen.sum() - rejected.sum()))
    if loss == "apo_zero":
        return 1 - torch.exp(log_sigmoid(beta * chosen.sum())) + torch.exp(log_sigmoid(beta * rejected.sum()))
    if loss == "ipo":
        return (chosen.mean() - rejected.mean() - 1 / (2 * beta)) ** 2
    assert loss == "simpo"
    return -log_sigmoid(beta * (policy[0].mean() - policy[1].mean()) - margin)


@pytest.mark.parametrize(
    ("loss", "beta", "sft"),
    [
        ("sigmoid_norm", None, None),
        ("sigmoid_norm", 2.0, 0.0),
        ("sigmoid", None, None),
        ("sigmoid", 0.3, 0.2),
        ("apo_zero", None, None),
        ("ipo", None, 1.0),
        ("simpo", None, None),
    ],
)
def test_values_and_gradients_are_the_formulas(
    make_model: Callable[..., Backbone], loss: str, beta: float | None, sft: float | None
) -> None:
    model, reference = make_model().double(), make_model(seed=9).double()
    settings = Preference(loss, beta, sft)  # type: ignore[arg-type]
    pairs = drawn_pairs(4)
    batch = with_reference(pair_batch(pairs, 32, settings), reference)
    used_beta = beta or {"sigmoid_norm": 5.0, "simpo": 2.0}.get(loss, 0.1)
    used_sft = sft if sft is not None else 0.5 if loss == "sigmoid_norm" else 0.0
    losses = []
    for pair in pairs:
        answers = (pair.chosen, pair.rejected)
        policy = [naive_log_probs(model, pair.prompt, answer) for answer in answers]
        known = [naive_log_probs(reference, pair.prompt, answer).detach() for answer in answers]
        losses.append(formula(loss, used_beta, 1.0, policy, known) - used_sft * policy[0].mean())
    found = settings(model, batch)
    assert found.weight == 4 and 0 <= found.metrics["wins"] <= 4
    assert_equal_losses(model, found, torch.stack(losses).mean())


def test_at_the_reference_nothing_leads(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    batch = with_reference(pair_batch(drawn_pairs(3), 32, Preference()), model)
    for loss, wanted in (("sigmoid_norm", math.log(2)), ("sigmoid", math.log(2)), ("apo_zero", 1.0), ("ipo", 25.0)):
        found = Preference(loss, sft=0.0)(model, batch)  # type: ignore[arg-type]
        assert float(found.total.detach()) / found.weight == pytest.approx(wanted, abs=1e-5)
        assert found.metrics["margin"] == found.metrics["wins"] == 0


def test_tokens_from_the_onset_on_weigh_more_and_the_mean_stays(make_model: Callable[..., Backbone]) -> None:
    """Weights 1 1 3 3 1 … over the rejected answer's mean; the chosen answer's tokens count alike."""
    model, reference = make_model().double(), make_model(seed=9).double()
    pair = AnswerPair([20, 21], [30, 31, 32], [40, 41, 42, 43, 44], onset=2)
    settings = Preference(sft=0.0, onset_weight=3.0, onset_tokens=2)
    batch = with_reference(pair_batch([pair], 8, settings), reference)
    chosen, rejected = (
        naive_log_probs(model, pair.prompt, answer) - naive_log_probs(reference, pair.prompt, answer).detach()
        for answer in (pair.chosen, pair.rejected)
    )
    weights = torch.tensor([1, 1, 3, 3, 1], dtype=torch.float64)
    lead = chosen.mean() - (weights * rejected).sum() / weights.sum()
    assert_equal_losses(model, settings(model, batch), -log_sigmoid(5.0 * lead))
    plain = pair_batch([pair], 8, Preference())
    assert torch.equal(plain.weights, plain.trained.float())


@pytest.mark.parametrize("softcap", [None, 3.0])
def test_final_tokens_are_the_formula_of_antislop(make_model: Callable[..., Backbone], softcap: float | None) -> None:
    model, reference = make_model().double(), make_model(seed=9).double()
    for each in (model, reference):
        each.config = replace(each.config, logit_softcap=softcap)
    pairs = drawn_pairs(5, onset=1)
    settings = FinalToken(alternatives=3, least=0.3, free=0.1)
    batch = final_token_batch(pairs, 24, settings, reference)

    def logits(of: Backbone, pair: AnswerPair) -> Tensor:
        ids = torch.tensor([pair.prompt + pair.rejected[:1]])
        plain = (of(ids)[0, -1] @ of.head.T).double()
        return plain if softcap is None else softcap * torch.tanh(plain / softcap)

    losses, wins = [], 0.0
    for i, pair in enumerate(pairs):
        policy, known, rejected = logits(model, pair), logits(reference, pair).detach(), pair.rejected[1]
        likely = [token for token in known.argsort(descending=True).tolist() if token != rejected][:3]
        offered = [token for token in likely if known[token] - known[likely[0]] >= math.log(0.3)]
        assert [token for token in batch.alternatives[i].tolist() if token >= 0] == offered
        hinges = []
        for token in offered:
            missing = 2 - (policy[token] - policy[rejected])
            hinges.append(torch.log1p(torch.exp(missing)) * (missing / 2).clamp(0, 1))
            wins += float(policy[token] > policy[rejected]) / len(offered)
        targets = [rejected, *offered]
        others = [token for token in range(len(known)) if token not in targets]
        far = (policy - known)[targets].abs() - 0.1
        tether = 0.4 * (policy - known)[others].square().mean() + 0.05 * far.clamp(min=0).square().mean()
        losses.append(torch.stack(hinges).mean() + tether)
    found = Preference("ftpo", ftpo=settings)(model, batch)
    assert found.weight == 5 and found.metrics["wins"] == pytest.approx(wins)
    assert_equal_losses(model, found, torch.stack(losses).mean())


def test_final_token_training_ends_when_the_alternatives_lead(make_model: Callable[..., Backbone]) -> None:
    """A few steps downhill make the alternatives win, and hardly move the rest of the vocabulary."""
    model, reference = make_model(layer_types=(CONV, ATTENTION)), make_model(layer_types=(CONV, ATTENTION))
    pairs = drawn_pairs(4, onset=1)
    settings = Preference("ftpo", ftpo=FinalToken(alternatives=4))
    batch = final_token_batch(pairs, 24, settings.ftpo, reference)
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0)
    for _ in range(60):
        optimizer.zero_grad()
        loss = settings(model, batch)
        (loss.total / loss.weight).backward()
        optimizer.step()
    assert loss.metrics["wins"] / loss.weight > 0.95 and loss.metrics["margin"] / loss.weight > 1
    assert loss.metrics["drift"] / loss.weight < 0.1


def test_final_tokens_need_an_onset(make_model: Callable[..., Backbone]) -> None:
    for onset in (None, 99):
        with pytest.raises(ValueError, match="needs the onset"):
            final_token_batch([AnswerPair([20], [21], [22, 23], onset)], 8, FinalToken(), make_model())


def test_a_pair_without_tokens_is_refused() -> None:
    for sides in (([], [1], [2]), ([1], [], [2]), ([1], [2], [])):
        with pytest.raises(UserError, match="has no tokens"):
            AnswerPair(*sides)


@pytest.mark.parametrize(
    "wrong", [{"beta": 0.0}, {"beta": -1.0}, {"sft": -0.1}, {"onset_weight": 0.0}, {"onset_tokens": 0}]
)
def test_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="use a"):
        Preference(**wrong)


@pytest.mark.parametrize("wrong", [{"epsilon": 0.0}, {"alternatives": 0}, {"least": 1.5}])
def test_final_token_settings_that_mean_nothing_are_refused(wrong: dict) -> None:
    with pytest.raises(UserError, match="use an epsilon"):
        FinalToken(**wrong)
