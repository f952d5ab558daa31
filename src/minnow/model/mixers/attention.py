"""Grouped-query attention: over the whole document or a sliding window, with what families add to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.config import Attention as Shape
from minnow.model.config import ModelConfig
from minnow.model.norms import multiplier
from minnow.model.rotary import RotaryTable
from minnow.model.state import AttentionState, ring


class Attention(nn.Module):
    """Causal attention; queries, keys, values and the output gate are one matrix product."""

    q_norm: nn.Parameter | None
    k_norm: nn.Parameter | None

    def __init__(self, shape: Shape, config: ModelConfig) -> None:
        super().__init__()
        self.shape, self.eps, self.norm_offset = shape, config.norm_eps, config.norm_offset
        query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
        gate = {None: 0, "head": shape.heads, "element": query}[shape.output_gate]
        self.rows = [query, key, key, *([gate] if gate else [])]
        self.qkv_proj = nn.Linear(config.hidden_size, sum(self.rows), bias=False)
        self.out_proj = nn.Linear(query, config.hidden_size, bias=False)
        for name in ("q_norm", "k_norm"):
            self.register_parameter(name, nn.Parameter(torch.ones(shape.head_dim)) if shape.qk_norm else None)

    def _project(self, x: Tensor, rotary: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``x [B, T, D]`` to rotated ``q [B, T, H, h]``, ``k, v [B, T, G, h]``, and the gate's logits."""
        assert rotary is not None, "attention needs a rotary table"
        shape = self.shape
        projected, gate = self.qkv_proj(x), None
        if shape.output_gate:
            projected, gate = projected.split([sum(self.rows[:3]), self.rows[3]], dim=-1)
            gate = gate.unflatten(-1, (shape.heads, -1))
        heads = projected.unflatten(-1, (-1, shape.head_dim))
        q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=-2)
        if self.q_norm is not None and self.k_norm is not None:
            q_norm, k_norm = multiplier(self.q_norm, self.norm_offset), multiplier(self.k_norm, self.norm_offset)
            q, k = kernels.qk_norm_rope(q, k, q_norm, k_norm, *rotary, self.eps)
        else:
            q, k = kernels.rope(q, k, *rotary)
        return q, k, v, gate

    def _out(self, mixed: Tensor, gate: Tensor | None) -> Tensor:
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate)
        return self.out_proj(mixed.flatten(-2))

    def forward(self, x: Tensor, rotary: RotaryTable | None, documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; a query sees the earlier positions of its own document."""
        q, k, v, gate = self._project(x, rotary)
        return self._out(self._attend(q, k, v, documents), gate)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
        shape = self.shape
        return kernels.attention(q, k, v, documents, shape.window, shape.scale, shape.softcap)

    def prefill(
        self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, capacity: int
    ) -> tuple[Tensor, AttentionState]:
        """As ``forward`` over right-padded rows; the state has room for ``capacity`` positions, or for the window."""
        q, k, v, gate = self._project(x, rotary)
        window = self.shape.window
        if window is not None and window < capacity:
            state = AttentionState(ring(k, lengths, window), ring(v, lengths, window))
        else:
            padding = (0, 0, 0, capacity - x.shape[1])
            state = AttentionState(F.pad(k.transpose(1, 2), padding), F.pad(v.transpose(1, 2), padding))
        return self._out(self._attend(q, k, v, None), gate), state

    def step(self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, state: AttentionState) -> Tensor:
        """One position ``x [B, D]`` at ``lengths [B]``; the state gains its key and value."""
        assert rotary is not None, "attention needs a rotary table"
        cos, sin = rotary
        q, k, v, gate = self._project(x[:, None], (cos[:, None], sin[:, None]))
        shape, rows = self.shape, torch.arange(len(x), device=x.device)
        places = lengths if shape.window is None else lengths % shape.window
        state.keys[rows, :, places] = k[:, 0]
        state.values[rows, :, places] = v[:, 0]
        # A ring that is full holds the window and nothing else, in whatever order.
        span = min(int(lengths.max()) + 1, state.keys.shape[2])
        seen = (torch.arange(span, device=x.device) <= lengths[:, None])[:, None, None]
        # The query heads that share a key head stand as query positions: no repeated keys, no causal mask.
        grouped = q[:, 0].unflatten(1, (shape.kv_heads, -1))
        mixed = kernels.attend(
            grouped, state.keys[:, :, :span], state.values[:, :, :span], seen, shape.scale, shape.softcap
        )
        return self._out(mixed.flatten(1, 2), None if gate is None else gate[:, 0])

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        return {"qkv_proj.weight": self.rows, "out_proj.weight": [self.out_proj.out_features]}
