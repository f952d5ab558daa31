"""What transforms each position: SwiGLU, GeGLU, and mixtures of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import config, kernels
from minnow.model.linear import Linear

_GATED: dict[str, Callable[[Tensor], Tensor]] = {"silu": kernels.swiglu, "gelu": kernels.geglu}
"""``activation(gate) * up`` of ``[..., 2F]``."""


class Dense(nn.Module):
    """``down(activation(gate(x)) * up(x))``; gate and up are one matrix product."""

    def __init__(self, shape: config.Dense, hidden_size: int) -> None:
        super().__init__()
        self.gated = _GATED[shape.activation]
        self.gate_up_proj = Linear(hidden_size, 2 * shape.width)
        self.down_proj = Linear(shape.width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(self.gated(self.gate_up_proj(x)))

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        return {
            "gate_up_proj.weight": [self.down_proj.in_features] * 2,
            "down_proj.weight": [self.down_proj.out_features],
        }


class Experts(nn.Module):
    """Each token's output is the weighted sum of the ``active`` experts that its router scores highest.

    The experts' matrices stand one below the other: ``gate_up [E * 2F, D]`` and ``down [E * D, F]``.
    """

    selection_bias: Tensor | None

    def __init__(self, shape: config.Experts, hidden_size: int) -> None:
        super().__init__()
        self.shape, self.hidden_size = shape, hidden_size
        self.gated = _GATED[shape.activation]
        self.router = nn.Parameter(torch.empty(shape.experts, hidden_size))
        self.gate_up = nn.Parameter(torch.empty(shape.experts * 2 * shape.width, hidden_size))
        self.down = nn.Parameter(torch.empty(shape.experts * hidden_size, shape.width))
        self.register_buffer("selection_bias", torch.zeros(shape.experts) if shape.selection_bias else None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Casts leave the selection bias in float32: it decides between scores that are close."""
        bias = self.selection_bias
        super()._apply(fn, recurse)
        if bias is not None and self.selection_bias is not None and self.selection_bias.dtype != bias.dtype:
            self.selection_bias = bias.to(self.selection_bias.device)
        return self

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """``x [N, D]`` to the chosen experts' weights and numbers, ``[N, active]`` each; weights in float32 at least."""
        wide = torch.promote_types(x.dtype, torch.float32)
        scores = torch.sigmoid(F.linear(x.to(wide), self.router.to(wide)))
        ranked = scores if self.selection_bias is None else scores + self.selection_bias
        chosen = ranked.topk(self.shape.active, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.shape.normalise:
            weights = weights / (weights.sum(-1, keepdim=True) + 1e-6)
        return weights * self.shape.scale, chosen

    def forward(self, x: Tensor) -> Tensor:
        flat = x.reshape(-1, self.hidden_size)
        weights, chosen = self.route(flat)
        numbers = chosen.flatten()  # the number after the last expert's goes nowhere
        counts = torch.bincount(numbers, minlength=self.shape.experts)[: self.shape.experts]
        order = numbers.argsort(stable=True)[: int(counts.sum())]
        tokens = order // self.shape.active
        outputs = self.transform(flat[tokens], counts) * weights.flatten()[order, None]
        placed = outputs.new_zeros(len(numbers), self.hidden_size).index_copy(0, order, outputs)
        return placed.view(*x.shape[:-1], self.shape.active, self.hidden_size).sum(-2).to(x.dtype)

    def transform(self, x: Tensor, counts: Tensor) -> Tensor:
        """``x [N, D]`` through experts, the first ``counts[0]`` rows through the first and so on; ``counts [E]``."""
        return self.through(self.gate_up, self.down, x, counts)

    def through(self, gate_up: Tensor, down: Tensor, x: Tensor, counts: Tensor) -> Tensor:
        """As :meth:`transform` with the matrices ``gate_up`` and ``down`` of any number of experts."""
        inner = self.gated(kernels.grouped_linear(x, gate_up.view(len(counts), -1, self.hidden_size), counts))
        return kernels.grouped_linear(inner, down.view(len(counts), self.hidden_size, -1), counts)

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix; the router is a table, not a map."""
        experts = self.shape.experts
        return {"gate_up": [self.shape.width] * 2 * experts, "down": [self.hidden_size] * experts}


def build_feed_forward(shape: config.FeedForward, hidden_size: int) -> Dense | Experts:
    """The module of ``shape``."""
    module: Any = Dense if isinstance(shape, config.Dense) else Experts
    return module(shape, hidden_size)
