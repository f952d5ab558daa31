"""Grouped-query attention: over the whole document or a sliding window, with what families add to it."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.config import Attention as Shape
from minnow.model.config import ModelConfig
from minnow.model.linear import Linear
from minnow.model.norms import multiplier
from minnow.model.rotary import RotaryTable
from minnow.model.rows import Rows
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
        self.qkv_proj = Linear(config.hidden_size, sum(self.rows))
        self.out_proj = Linear(query, config.hidden_size)
        for name in ("q_norm", "k_norm"):
            self.register_parameter(name, nn.Parameter(torch.ones(shape.head_dim)) if shape.qk_norm else None)

    def project(self, x: Tensor, rotary: RotaryTable | None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """``x [B, T, D]`` to rotated ``q [B, T, H, h]``, ``k, v [B, T, G, h]``, and the gate's logits."""
        assert rotary is not None, "attention needs a rotary table"
        shape = self.shape
        projected, gate = self.qkv_proj(x), None
        if shape.output_gate:
            projected, gate = projected.split([sum(self.rows[:3]), self.rows[3]], dim=-1)
            gate = gate.unflatten(-1, (shape.heads, -1))
        heads = projected.unflatten(-1, (-1, shape.head_dim))
        q, k, v = heads.split([shape.heads, shape.kv_heads, shape.kv_heads], dim=-2)
        if norms := self._norms():
            q, k = kernels.qk_norm_rope(q, k, *norms, *rotary, self.eps)
        else:
            q, k = kernels.rope(q, k, *rotary)
        return q, k, v, gate

    def _norms(self) -> tuple[Tensor, Tensor] | None:
        if self.q_norm is None or self.k_norm is None:
            return None
        return multiplier(self.q_norm, self.norm_offset), multiplier(self.k_norm, self.norm_offset)

    def out(self, mixed: Tensor, gate: Tensor | None) -> Tensor:
        if gate is not None:
            mixed = mixed * torch.sigmoid(gate)
        return self.out_proj(mixed.flatten(-2))

    def forward(self, x: Tensor, rotary: RotaryTable | None, documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; a query sees the earlier positions of its own document."""
        q, k, v, gate = self.project(x, rotary)
        return self.out(self.attend(q, k, v, documents), gate)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, documents: Tensor | None) -> Tensor:
        """What :func:`kernels.attention` makes of queries, keys and values."""
        shape = self.shape
        return kernels.attention(q, k, v, documents, shape.window, shape.scale, shape.softcap)

    def prefill(
        self, x: Tensor, rotary: RotaryTable | None, rows: Rows, capacity: int, last: bool
    ) -> tuple[Tensor, AttentionState]:
        """``x [N, D]`` of ``rows`` to the output, of their last positions alone if ``last``, and the state, which has room
        for ``capacity`` positions, or for the window."""
        assert rotary is not None, "attention needs a rotary table"
        q, k, v, gate = self.project(x[None], rotary)
        k, v = rows.padded(k[0]), rows.padded(v[0])
        window = self.shape.window
        if window is not None and window < capacity:
            state = AttentionState(ring(k, rows.lengths, window), ring(v, rows.lengths, window))
        else:
            padding = (0, 0, 0, capacity - rows.width)
            kept = (F.pad(heads.transpose(1, 2), padding).contiguous() for heads in (k, v))
            state = AttentionState(*kept)
        if last:  # a step answers those, and writes their keys and values where they are
            cos, sin = rotary
            return self.step(x[rows.ends], (cos[rows.ends], sin[rows.ends]), rows.lengths - 1, state), state
        mixed = rows.flat(self.attend(rows.padded(q[0]), k, v, None))
        return self.out(mixed, None if gate is None else gate[0]), state

    def step(self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, state: AttentionState) -> Tensor:
        """One position ``x [B, D]`` at ``lengths [B]``; the state gains its key and value."""
        assert rotary is not None, "attention needs a rotary table"
        shape, projected = self.shape, self.qkv_proj(x)
        mixed = kernels.attention_step(
            projected, self._norms(), self.eps, rotary, lengths, state.keys, state.values, shape.heads, shape.scale,
            shape.softcap,
        )  # fmt: skip
        gate = projected[:, sum(self.rows[:3]) :].unflatten(-1, (shape.heads, -1)) if shape.output_gate else None
        return self.out(mixed, gate)

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        return {"qkv_proj.weight": self.rows, "out_proj.weight": [self.out_proj.out_features]}
