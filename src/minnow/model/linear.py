"""Linear maps whose weights can be held a second time in the order that decoding reads fastest."""

from __future__ import annotations

from torch import Tensor, nn

from minnow.model import kernels


class Linear(nn.Linear):
    """``x [..., inputs]`` to ``[..., outputs]`` without bias; ``packed`` is set while :meth:`Backbone.decoding` lasts."""

    packed: Tensor | None = None

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return kernels.linear(x, self.weight, self.packed)
