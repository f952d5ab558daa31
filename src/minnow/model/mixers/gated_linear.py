"""Gated linear attention (arXiv 2312.06635): a memory matrix per head whose key dimensions fade each at its own rate."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from minnow.model import kernels
from minnow.model.config import GatedLinear as Shape
from minnow.model.config import ModelConfig
from minnow.model.linear import Linear
from minnow.model.rotary import RotaryTable
from minnow.model.rows import Rows
from minnow.model.state import RecurrentState


class GatedLinear(nn.Module):
    """``S_t = diag(a_t) S_(t-1) + k_t v_t'``, read by the query; a norm per head and an output gate follow."""

    def __init__(self, shape: Shape, config: ModelConfig) -> None:
        super().__init__()
        self.shape, self.eps = shape, config.norm_eps
        key, value = shape.heads * shape.key_dim, shape.heads * shape.value_dim
        self.rows = [key, key, value, value]
        self.in_proj = Linear(config.hidden_size, sum(self.rows))
        self.decay_down = Linear(config.hidden_size, shape.gate_rank)
        self.decay_up = nn.Linear(shape.gate_rank, key)
        self.norm = nn.Parameter(torch.ones(shape.value_dim))
        self.out_proj = Linear(value, config.hidden_size)

    @torch.no_grad()
    def initialise_rates(self, generator: torch.Generator) -> None:
        """No bias: every dimension begins by halving over ``temperature`` positions."""
        self.decay_up.bias.zero_()

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """``x [..., D]`` to queries, keys, values and logarithms of the decay by head, and the output gate."""
        q, k, v, gate = self.in_proj(x).split(self.rows, dim=-1)
        wide = torch.promote_types(x.dtype, torch.float32)
        log_decay = F.logsigmoid(self.decay_up(self.decay_down(x)).to(wide)) / self.shape.temperature
        key, value = self.shape.key_dim, self.shape.value_dim
        widths = ((q, key), (k, key), (v, value), (log_decay, key), (gate, value))
        q, k, v, log_decay, gate = (part.unflatten(-1, (-1, width)) for part, width in widths)
        return q, k, v, log_decay, gate

    def _out(self, recalled: Tensor, gate: Tensor) -> Tensor:
        return self.out_proj(kernels.rms_norm_gated(recalled, gate, self.norm, self.eps).flatten(-2))

    def forward(self, x: Tensor, rotary: RotaryTable | None, documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; every document begins with an empty memory."""
        q, k, v, log_decay, gate = self._project(x)
        return self._out(self.recall((q, k, v, log_decay), documents)[0], gate)

    def recall(
        self, inputs: tuple[Tensor, Tensor, Tensor, Tensor], documents: Tensor | None, memory: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What :func:`kernels.gated_linear` makes of its ``inputs``."""
        return kernels.gated_linear(*inputs, documents, memory)

    def prefill(
        self, x: Tensor, rotary: RotaryTable | None, rows: Rows, capacity: int, last: bool
    ) -> tuple[Tensor, RecurrentState]:
        """``x [N, D]`` of ``rows`` to the output, of their last positions alone if ``last``, and the state, which
        is what each row's last position left."""
        *inputs, gate = self._project(x)
        q, k, v, log_decay = map(rows.padded, inputs)
        padding = rows.padding[..., None, None]
        recalled, matrix = kernels.gated_linear(q, k.masked_fill(padding, 0), v, log_decay.masked_fill(padding, 0))
        state = RecurrentState(x.new_empty(len(rows.lengths), 0, 0), matrix)
        recalled = rows.flat(recalled)
        if last:
            recalled, gate = recalled[rows.ends], gate[rows.ends]
        return self._out(recalled, gate), state

    def step(self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, state: RecurrentState) -> Tensor:
        """One position ``x [B, D]``; the state moves on by one."""
        q, k, v, log_decay, gate = self._project(x)
        recalled, state.matrix = kernels.gated_linear_step(q, k, v, log_decay, state.matrix)
        return self._out(recalled, gate)

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        return {"in_proj.weight": self.rows, "out_proj.weight": [self.out_proj.out_features]}
