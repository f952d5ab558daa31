"""Objectives against plain float64 formulas, and what packing and micro-batches must not change."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from minnow.data.loader import Batch
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.train.objectives import (
    PolicyBatch,
    PolicyGradient,
    Preference,
    SequenceBatch,
    completion_log_probs,
    next_token,
    pack_sequences,
    split_rows,
)

token_lists = st.lists(st.integers(14, 511), min_size=1, max_size=9)
sequences = st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=8)


def drawn(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)

    def ids() -> list[int]:
        length = int(torch.randint(1, 9, (), generator=generator))
        return torch.randint(14, 512, (length,), generator=generator).tolist()

    return [ids() for _ in range(count)], [ids() for _ in range(count)]


def naive_log_probs(model: Backbone, prompt: list[int], completion: list[int]) -> Tensor:
    """Of the completion's tokens, float64, from a forward over this one sequence with all logits."""
    hidden = model(torch.tensor([prompt + completion[:-1]]))[0, len(prompt) - 1 :].double()
    logits = hidden @ model.head.double().T
    return logits.log_softmax(-1).gather(1, torch.tensor(completion)[:, None])[:, 0]


def references(completions: list[list[int]], scale: float = 0.5) -> list[list[float]]:
    generator = torch.Generator().manual_seed(3)
    return [(-6 + scale * torch.randn(len(ids), generator=generator)).tolist() for ids in completions]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(sequences, st.integers(1, 24))
def test_packing_keeps_every_sequence_whole(pairs: list[tuple[list[int], list[int]]], width: int) -> None:
    """Read back row by row: documents are the sequences, every completion token is a target once, nothing else is."""
    prompts, completions = [list(p) for p, _ in pairs], [list(c) for _, c in pairs]
    known = [[float(100 * i + place) for place in range(len(ids))] for i, ids in enumerate(completions)]
    batch = pack_sequences(prompts, completions, width, known)
    assert batch.tokens.shape[1] == max(width, max(len(p) + len(c) for p, c in pairs))
    assert batch.lengths.tolist() == [len(ids) for ids in completions]
    assert torch.equal(batch.trained, batch.targets != kernels.IGNORED)
    seen = []
    for row in range(len(batch.tokens)):
        for document in range(1, int(batch.documents[row].max()) + 1):
            places = (batch.documents[row] == document).nonzero()[:, 0]
            assert places.tolist() == list(range(int(places[0]), int(places[-1]) + 1)), "a document is one run"
            trained = places[batch.trained[row, places]]
            (i,) = set(batch.sequences[row, trained].tolist())
            seen.append(i)
            assert batch.tokens[row, places].tolist() == prompts[i] + completions[i]
            assert batch.targets[row, trained].tolist() == completions[i]
            assert batch.reference[row, trained].tolist() == known[i]
            assert torch.equal(batch.targets[row, trained], batch.tokens[row, trained + 1])
        padding = batch.documents[row] == 0
        assert not batch.trained[row, padding].any() and not batch.tokens[row, padding].any()
    assert sorted(seen) == list(range(len(pairs)))


def test_packing_refuses_a_sequence_with_nothing_to_predict_or_to_predict_from() -> None:
    for prompts, completions in (([[1], []], [[2], [3]]), ([[1]], [[]])):
        with pytest.raises(ValueError, match="at least one token"):
            pack_sequences(prompts, completions, 8)


def test_packing_fills_rows() -> None:
    """Sizes 7 5 3 3 2 into rows of 10: two rows, which is the least there can be."""
    batch = pack_sequences([[1]] * 5, [[2] * n for n in (2, 6, 4, 1, 2)], 10)
    assert len(batch.tokens) == 2


@pytest.mark.parametrize("width", [1, 20, 64])
def test_completion_log_probs_do_not_depend_on_the_packing(make_model: Callable[..., Backbone], width: int) -> None:
    model = make_model()
    prompts, completions = drawn(7)
    batch = pack_sequences(prompts, completions, width)
    log_probs = completion_log_probs(model, batch)
    assert not log_probs[~batch.trained].any()
    for i, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        wanted = naive_log_probs(model, prompt, completion)
        torch.testing.assert_close(log_probs[batch.sequences == i].double(), wanted, atol=1e-4, rtol=1e-5)


def test_next_token_counts_trained_positions_only(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    prompts, completions = drawn(5)
    loss = next_token(model, pack_sequences(prompts, completions, 24))
    wanted = [naive_log_probs(model, p, c) for p, c in zip(prompts, completions, strict=True)]
    assert loss.weight == sum(map(len, completions))
    torch.testing.assert_close(loss.total.double(), -torch.cat(wanted).sum(), atol=1e-3, rtol=1e-5)


@pytest.mark.parametrize(("beta", "sft"), [(5.0, 0.5), (0.1, 0.0), (2.0, 1.0)])
def test_preference_is_length_normalised_dpo_with_an_sft_term(
    make_model: Callable[..., Backbone], beta: float, sft: float
) -> None:
    """The formula of TRL's ``sigmoid_norm`` plus the mean NLL of the chosen answer, pair by pair in float64."""
    model = make_model()
    prompts, completions = drawn(8)
    prompts = [prompts[i - i % 2] for i in range(8)]
    reference = references(completions)
    batch = pack_sequences(prompts, completions, 32, reference)

    losses, wins = [], 0
    for chosen in range(0, 8, 2):
        policy = [naive_log_probs(model, prompts[i], completions[i]) for i in (chosen, chosen + 1)]
        known = [torch.tensor(reference[i], dtype=torch.float64) for i in (chosen, chosen + 1)]
        chosen_ratio, rejected_ratio = ((p - r).sum() / len(p) for p, r in zip(policy, known, strict=True))
        margin = beta * (chosen_ratio - rejected_ratio)
        losses.append(torch.log1p(torch.exp(-margin)) - sft * policy[0].mean())
        wins += bool(margin > 0)
    wanted = torch.stack(losses).sum()
    model.zero_grad()
    (wanted / 4).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    loss = Preference(beta, sft)(model, batch)
    assert loss.weight == 4 and loss.metrics["wins"] == wins
    torch.testing.assert_close(loss.total.double(), wanted, atol=2e-4, rtol=1e-5)
    (loss.total / loss.weight).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-4, rtol=1e-3)


def test_preference_at_the_reference_is_ln_two(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    batch = pack_sequences(*drawn(6), 32)
    batch.reference = completion_log_probs(model, batch).detach()
    loss = Preference(5.0, 0.0)(model, batch)
    assert float(loss.total.detach()) / loss.weight == pytest.approx(math.log(2), abs=1e-6)
    assert loss.metrics["margin"] == 0


def policy_batch(prompts: list, completions: list, reference: list, advantages: list[float], width: int) -> PolicyBatch:
    packed: SequenceBatch = pack_sequences(prompts, completions, width, reference)
    return PolicyBatch(**vars(packed), advantages=torch.tensor(advantages))


@pytest.mark.parametrize("kl", [0.0, 0.3])
def test_policy_gradient_equals_its_formula_token_by_token(make_model: Callable[..., Backbone], kl: float) -> None:
    model = make_model()
    prompts, completions = drawn(6)
    reference = [
        (naive_log_probs(model, p, c).detach() + 0.4 * torch.randn(len(c), generator=torch.Generator().manual_seed(i)))
        .tolist()
        for i, (p, c) in enumerate(zip(prompts, completions, strict=True))
    ]  # fmt: skip
    advantages = [1.0, -1.0, 0.5, -0.25, 2.0, -2.0]
    terms, clipped = [], 0
    for prompt, completion, known, advantage in zip(prompts, completions, reference, advantages, strict=True):
        for log_prob, old in zip(naive_log_probs(model, prompt, completion), known, strict=True):
            ratio = torch.exp(log_prob - old)
            value = float(ratio.detach())
            bounded = min(max(value, 0.8), 1.28)
            clipped += bounded != value
            surrogate = ratio * advantage if value * advantage <= bounded * advantage else bounded * advantage
            divergence = torch.exp(old - log_prob) - (old - log_prob) - 1
            terms.append(-surrogate + kl * divergence)
    wanted = sum(terms)
    model.zero_grad()
    (wanted / len(terms)).backward()
    gradients = [parameter.grad.clone() for parameter in model.parameters()]

    model.zero_grad()
    loss = PolicyGradient(0.2, 0.28, kl)(model, policy_batch(prompts, completions, reference, advantages, 24))
    assert loss.weight == sum(map(len, completions)) and loss.metrics["clipped"] == clipped > 0
    torch.testing.assert_close(loss.total.double(), wanted.double(), atol=2e-3, rtol=1e-4)
    (loss.total / loss.weight).backward()
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, atol=2e-4, rtol=1e-3)


def gradients_of(model: Backbone, objective: Callable, batches: list) -> tuple[float, float, list[Tensor]]:
    model.zero_grad()
    losses = [objective(model, batch) for batch in batches]
    for loss in losses:
        loss.total.backward()
    total, weight = sum(float(loss.total.detach()) for loss in losses), sum(loss.weight for loss in losses)
    return total, weight, [parameter.grad.clone() for parameter in model.parameters()]


def test_micro_batches_of_unequal_size_add_up(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    prompts, completions = drawn(9)
    whole = policy_batch(prompts, completions, references(completions), [(-1.0) ** i for i in range(9)], 20)
    parts = split_rows(whole, 2)
    assert len({len(part.tokens) for part in parts}) == 2, "the last micro-batch is smaller"
    for objective in (PolicyGradient(kl=0.1), next_token):
        total, weight, gradients = gradients_of(model, objective, [whole])
        part_total, part_weight, part_gradients = gradients_of(model, objective, parts)
        assert part_weight == weight and part_total == pytest.approx(total, rel=1e-4)
        for one, other in zip(gradients, part_gradients, strict=True):
            torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)


def test_a_batch_without_targets_weighs_nothing(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    tokens = torch.ones(1, 8, dtype=torch.long)
    loss = next_token(model, Batch(tokens, torch.full((1, 8), -100), tokens))
    loss.total.backward()
    assert loss.weight == 0 and float(loss.total.detach()) == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())
