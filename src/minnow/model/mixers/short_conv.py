"""Gated short convolution: ``out(C * conv(B * x))`` with ``B, C, x`` projected from the input (arXiv 2511.23404)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from minnow.model import kernels
from minnow.model.config import ModelConfig
from minnow.model.config import ShortConv as Shape
from minnow.model.linear import Linear
from minnow.model.rotary import RotaryTable
from minnow.model.rows import Rows
from minnow.model.state import ConvState


class ShortConv(nn.Module):
    """A causal depthwise convolution between two gates."""

    def __init__(self, shape: Shape, config: ModelConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.kernel = shape.kernel
        self.in_proj = Linear(width, 3 * width)
        self.conv = nn.Parameter(torch.empty(width, shape.kernel))
        self.out_proj = Linear(width, width)

    def forward(self, x: Tensor, rotary: RotaryTable | None, documents: Tensor | None) -> Tensor:
        """``x [B, T, D]`` to ``[B, T, D]``; a tap never reaches into another document."""
        return self.out_proj(self.convolve(self.in_proj(x), documents))

    def convolve(self, projected: Tensor, documents: Tensor | None) -> Tensor:
        """``projected [B, T, 3D]`` through the gates and the convolution, ``[B, T, D]``."""
        return kernels.short_conv(projected, self.conv, documents)

    def prefill(
        self, x: Tensor, rotary: RotaryTable | None, rows: Rows, capacity: int, last: bool
    ) -> tuple[Tensor, ConvState]:
        """``x [N, D]`` of ``rows`` to the output, of their last positions alone if ``last``, and the state, which
        holds the last ``kernel - 1`` gated inputs of each row."""
        projected = self.in_proj(x)
        gate_in, _, value = rows.last(projected, self.kernel - 1).chunk(3, dim=-1)
        mixed = self.convolve(projected[None], rows.documents)[0]
        return self.out_proj(mixed[rows.ends] if last else mixed), ConvState(gate_in * value)

    def step(self, x: Tensor, rotary: RotaryTable | None, lengths: Tensor, state: ConvState) -> Tensor:
        """One position ``x [B, D]``; the state moves on by one."""
        return self.out_proj(kernels.short_conv_step(self.in_proj(x), self.conv, state.inputs))

    def blocks(self) -> dict[str, list[int]]:
        """Row sizes of the logical matrices inside each weight matrix."""
        width = self.out_proj.out_features
        return {"in_proj.weight": [width] * 3, "out_proj.weight": [width]}
