"""Prompts with completions, and what a model says of one of them computed the long way."""

from __future__ import annotations

import torch
from torch import Tensor

from minnow.model.backbone import Backbone
from minnow.train.objectives import Loss


def drawn(count: int, seed: int = 0) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of 1 to 8 ids."""
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


def gradients_of(model: Backbone, total: Tensor) -> list[Tensor]:
    """Of ``total`` by every parameter."""
    model.zero_grad()
    total.backward()
    return [parameter.grad.clone() for parameter in model.parameters()]


def assert_equal_losses(model: Backbone, loss: Loss, mean: Tensor, closeness: float = 1e-5) -> None:
    """A loss and the formula ``mean`` agree in value and in every gradient, relative to the largest."""
    torch.testing.assert_close((loss.total / loss.weight).double(), mean.double(), atol=closeness, rtol=closeness)
    wanted = gradients_of(model, mean)
    found = gradients_of(model, loss.total / loss.weight)
    for one, other in zip(found, wanted, strict=True):
        assert float((one - other).abs().max()) <= closeness * max(float(other.abs().max()), 1e-3)
