"""Gated delta net (arXiv 2412.06464) as Qwen3.5 builds it: a memory matrix per head that corrects what it recalls."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.config import GatedDelta as Shape
from minnow.model.config import ModelConfig
from minnow.model.linear import Linear
from minnow.model.rotary import RotaryTable
from minnow.model.rows import Rows
from minnow.model.state import RecurrentState


class GatedDelta(nn.Module):
    """``S_t = a_t S_(t-1) (I - b_t k_t k_t') + b_t v_t k_t'``, read by the query, then a gated norm.

    A short convolution with SiLU goes over queries, keys and values first; queries and keys have unit length.
    """

    def __init__(self, shape: Shape, config: ModelConfig) -> None:
        super().__init__()
        self.shape, self.eps = shape, config.norm_eps
        key, value = shape.key_heads * shape.key_dim, shape.value_heads * shape.value_dim
        self.rows = [key, key, value, value]
        self.in_proj = Linear(config.hidden_size, sum(self.rows))
        self.gate_proj = Linear(config.hidden_size, 2 * shape.value_heads)
        self.conv = nn.Parameter(torch.empty(2 * key + value, shape.kernel))
        self.log_rate = nn.Parameter(torch.zeros(shape.value_heads))
        self.rate_bias = nn.Parameter(torch.ones(shape.value_heads))
        self.norm = nn.Parameter(torch.ones(shape.value_dim))
        self.out_proj = Linear(value, config.hidden_size)

    @torch.no_grad()
    def initialise_rates(self, generator: torch.Generator) -> None:
        """Memories of a wide range of lengths, drawn as Mamba-2 does: rates in [1, 16], steps in [0.001, 0.1]."""
        heads = self.shape.value_heads
        self.log_rate.copy_(torch.log(1 + 15 * torch.rand(heads, generator=generator)))
        steps = torch.exp(math.log(1e-3) + math.log(100) * torch.rand(heads, generator=generator))
        self.rate_bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    def _gates(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logarithm of the decay and strength of the correction, ``[..., H]`` each."""
        strength, rate = self.gate_proj(x).chunk(2, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = -self.log_rate.to(wide).exp() * F.softplus(rate.to(wide) + self.rate_bias.to(wide))
        return log_decay, torch.sigmoid(strength)

    def _heads(self, mixed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """``[..., channels]`` to queries and keys ``[..., G, K]`` and values ``[..., H, V]``."""
        q, k, v = mixed.split(self.rows[:3], dim=-1)
        key, value = self.shape.key_dim, self.shape.value_dim
        return q.unflatten(-1, (-1, key)), k.unflatten(-1, (-1, key)), v.unflatten(-1, (-1, value))

    def _out(self, recalled: Tensor, gate: Tensor) -> Tensor:
        gate = gate.unflatten(-1, (-1, self.shape.value_dim))
        return self.out_proj(kernels.rms_norm_gated(recalled, gate, self.norm, self.eps).flatten(-2))

    def forward(self, x: Tensor, rotary: RotaryTable | None, documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; every document begins with an empty memory."""
        mixed, gate = self.in_proj(x).split([sum(self.rows[:3]), self.rows[3]], dim=-1)
        q, k, v = self._heads(self.convolve(mixed, documents))
        recalled, _ = self.recall((q, k, v, *self._gates(x)), documents)
        return self._out(recalled, gate)

    def convolve(self, mixed: Tensor, documents: Tensor | None) -> Tensor:
        """``mixed [B, T, channels]`` through the convolution."""
        return kernels.causal_conv_silu(mixed, self.conv, documents)

    def recall(
        self,
        inputs: tuple[Tensor, Tensor, Tensor, Tensor, Tensor],
        documents: Tensor | None,
        memory: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """What :func:`kernels.gated_delta` makes of its ``inputs``."""
        return kernels.gated_delta(*inputs, documents, memory)

    def prefill(
        self, x: Tensor, rotary: RotaryTable | None, rows: Rows, capacity: int, last: bool
    ) -> tuple[Tensor, RecurrentState]:
        """``x [N, D]`` of ``rows`` to the output, of their last positions alone if ``last``, and the state, which
        is what each row's last position left."""
        mixed, gate = self.in_proj(x).split([sum(self.rows[:3]), self.rows[3]], dim=-1)
        q, k, v = map(rows.padded, self._heads(self.convolve(mixed[None], rows.documents)[0]))
        gates = (rows.padded(part).masked_fill(rows.padding[..., None], 0) for part in self._gates(x))
        recalled, matrix = kernels.gated_delta(q, k, v, *gates)
        state = RecurrentState(rows.last(mixed, self.shape.kernel - 1), matrix)
        recalled = rows.flat(recalled)
        if last:
            recalled, gate = recalled[rows.ends], gate[rows.ends]
        return self._out(recalled, gate), state

    def step(self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, state: RecurrentState) -> Tensor:
        """One position ``x [B, D]``; the state moves on by one."""
        mixed, gate = self.in_proj(x).split([sum(self.rows[:3]), self.rows[3]], dim=-1)
        window = torch.cat([state.inputs, mixed[:, None]], dim=1)
        state.inputs = window[:, 1:]
        q, k, v = self._heads(F.silu((window * self.conv.T).sum(1)))
        recalled, state.matrix = kernels.gated_delta_step(q, k, v, *self._gates(x), state.matrix)
        return self._out(recalled, gate)

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        return {"in_proj.weight": self.rows, "out_proj.weight": [self.out_proj.out_features]}
