"""Chunked losses against plain float64 ones over all logits, and what they must not hold."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from minnow.model import kernels
from minnow.train import vocabulary

Case = tuple[Tensor, Tensor, Tensor]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks of 7 positions, so that 40 do not divide evenly."""
    monkeypatch.setattr(vocabulary, "CHUNK_LOGITS", 7 * 50)


def case(dtype: torch.dtype, positions: int = 40) -> Case:
    generator = torch.Generator().manual_seed(1)
    hidden = torch.randn(positions, 12, generator=generator, dtype=torch.float64)
    head = torch.randn(50, 12, generator=generator, dtype=torch.float64)
    targets = torch.randint(50, (positions,), generator=generator)
    targets[torch.rand(positions, generator=generator) < 0.3] = kernels.IGNORED
    return hidden.to(dtype).requires_grad_(), head.to(dtype).requires_grad_(), targets


def plain(hidden: Tensor, head: Tensor, targets: Tensor, softcap: float | None) -> Tensor:
    """Log-probabilities over the whole matrix."""
    logits = hidden @ head.T
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return -F.cross_entropy(logits, targets, reduction="none")


def gradients(value: Tensor, hidden: Tensor, head: Tensor) -> list[Tensor]:
    return [value.detach(), *torch.autograd.grad(value, (hidden, head))]


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("what", ["cross_entropy", "token_log_probs"])
def test_values_and_gradients_equal_the_plain_ones(what: str, softcap: float | None) -> None:
    hidden, head, targets = case(torch.float32)
    wide_hidden, wide_head, _ = case(torch.float64)
    shares = torch.linspace(-1, 2, len(targets), dtype=torch.float64)
    wanted_values = plain(wide_hidden, wide_head, targets, softcap)
    if what == "cross_entropy":
        value = 3 * vocabulary.cross_entropy(hidden, head, targets, softcap)
        wanted = -3 * wanted_values.sum()
    else:
        values = vocabulary.token_log_probs(hidden, head, targets, softcap)
        torch.testing.assert_close(values.double(), wanted_values, rtol=1e-5, atol=1e-5)
        value, wanted = (values * shares.float()).sum(), (wanted_values * shares).sum()
    mine = gradients(value, hidden, head)
    theirs = gradients(wanted, wide_hidden, wide_head)
    for one, other in zip(mine, theirs, strict=True):
        assert float((one.double() - other).norm() / other.norm()) < 1e-5


def test_half_precision_adds_the_head_up_in_float32() -> None:
    """700 chunks of one position each; sums kept in bfloat16 would lose most of them."""
    hidden = torch.ones(700, 4, dtype=torch.float16, requires_grad=True)
    head = torch.zeros(50, 4, dtype=torch.float16, requires_grad=True)
    vocabulary.cross_entropy(hidden, head, torch.zeros(700, dtype=torch.long)).backward()
    assert head.grad is not None
    assert float(head.grad[0, 0]) == pytest.approx(-700 * 0.98, rel=2e-3)
    assert float(head.grad[1, 0]) == pytest.approx(700 * 0.02, rel=2e-3)


@pytest.mark.parametrize("function", [vocabulary.cross_entropy, vocabulary.token_log_probs])
def test_nothing_trained_gives_zero_gradients(function: Callable[..., Tensor]) -> None:
    hidden, head, targets = case(torch.float32)
    value = function(hidden, head, torch.full_like(targets, kernels.IGNORED)).sum()
    assert float(value.detach()) == 0.0
    assert not any(gradient.any() for gradient in torch.autograd.grad(value, (hidden, head)))


@pytest.mark.parametrize("function", [vocabulary.cross_entropy, vocabulary.token_log_probs])
def test_no_more_than_a_chunk_of_logits_is_kept_for_the_backward_pass(function: Callable[..., Tensor]) -> None:
    hidden, head, targets = case(torch.float32, 400)
    kept: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        function(hidden, head, targets)
    assert max(kept) <= max(hidden.numel(), head.numel(), 7 * 50) < 400 * 50 / 4
