"""Objectives against plain float64 formulas, and what packing and micro-batches must not change."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sequence_cases import drawn, naive_log_probs

from minnow.data.loader import Batch
from minnow.model import kernels
from minnow.model.backbone import Backbone
from minnow.train.objectives import completion_log_probs, next_token, pack_sequences

token_lists = st.lists(st.integers(14, 511), min_size=1, max_size=9)
sequences = st.lists(st.tuples(token_lists, token_lists), min_size=1, max_size=8)


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


def test_a_batch_without_targets_weighs_nothing(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    tokens = torch.ones(1, 8, dtype=torch.long)
    loss = next_token(model, Batch(tokens, torch.full((1, 8), -100), tokens))
    loss.total.backward()
    assert loss.weight == 0 and float(loss.total.detach()) == 0
    assert all(not parameter.grad.any() for parameter in model.parameters())


def test_sources_of_a_batch_are_reported_and_change_nothing(make_model: Callable[..., Backbone]) -> None:
    """Loss and gradient are those of the whole, and each source's are those of its rows alone."""
    model = make_model(vocab_size=512).float()
    tokens = torch.randint(14, 512, (5, 17), generator=torch.Generator().manual_seed(0))
    fields = tokens[:, :-1], tokens[:, 1:].clone(), torch.ones_like(tokens[:, 1:])
    fields[1][0, :9] = kernels.IGNORED
    sources = torch.tensor([2, 0, 2, 2, 0])
    losses, gradients = [], []
    for batch in (Batch(*fields), Batch(*fields, sources=sources)):
        model.zero_grad()
        losses.append(next_token(model, batch))
        losses[-1].total.backward()
        gradients.append(torch.cat([parameter.grad.flatten() for parameter in model.parameters()]))  # type: ignore[union-attr]
    plain, split = losses
    assert (
        float(split.total.detach()) == pytest.approx(float(plain.total.detach()), rel=1e-5)
        and split.weight == plain.weight == 71
    )
    assert float((gradients[1] - gradients[0]).norm() / gradients[0].norm()) < 1e-5
    alone = next_token(model, Batch(*(values[sources == 2] for values in fields)))
    assert split.metrics["source.2.loss"] == pytest.approx(float(alone.total.detach()), rel=1e-5)
    assert split.metrics["source.2.tokens"] == alone.weight == 39
    assert set(split.metrics) == {f"source.{n}.{what}" for n in (0, 2) for what in ("loss", "tokens")}
