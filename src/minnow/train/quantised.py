"""Training the weights that a quantised file will hold: rounded in every forward pass, behind the optimiser's interface."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.blocks import BLOCK, rounded
from minnow.model.language_model import LanguageModel
from minnow.train.optimizer import Optimizer, OptimizerSettings

BlockType = Literal["Q4_0", "Q8_0"]


def rounded_types(model: LanguageModel, kind: BlockType) -> dict[str, str]:
    """The block type of each parameter in a file of type ``kind``, by the rules of ``minnow export``.

    Norms, convolution taps, routers and matrices of odd widths are not rounded to blocks, and not listed; the head takes
    Q8_0.

    Raises:
        UserError: a model without a family, which no file is written of.
    """
    if not isinstance(model, Backbone):
        raise UserError("no file is written of a model without a family; train one of a family for its blocks")
    head = "embedding" if model.config.tied else "output"
    return {
        name: "Q8_0" if name == head else kind
        for name, weight in model.named_parameters()
        if weight.dim() == 2 and weight.shape[1] % BLOCK == 0 and not name.endswith("router")
    }


class QuantisedOptimizer(Optimizer):
    """An optimiser whose compute weights are its masters as blocks round them.

    The gradient at the rounded weights updates the masters as if nothing had been rounded (straight-through, arXiv
    1308.3432), so no module of the model knows of it, and kernels and engines serve as they are. What it gives away as
    weights is rounded: rounding once more on the way into a file changes nothing.
    """

    def __init__(self, model: LanguageModel, settings: OptimizerSettings, dtype: torch.dtype, kind: BlockType) -> None:
        types = rounded_types(model, kind)
        super().__init__(model, settings, dtype, model.matrices())
        self.types = {i: types[name] for i, name in enumerate(self.names) if name in types}
        for i in self.types:
            if self.shadows[i] is self.masters[i]:  # in float32 the model computes with the masters themselves
                self.parameters[i].data = self.masters[i].clone()
        self._round()

    def step(self, rate: float, weight: float) -> float:
        """As :meth:`Optimizer.step`."""
        norm = super().step(rate, weight)
        if math.isfinite(norm):
            self._round()
        return norm

    def publish(self) -> None:
        """Write the masters, rounded, into the compute weights."""
        super().publish()
        self._round()

    @torch.no_grad()
    def _round(self) -> None:
        for i, kind in self.types.items():
            self.parameters[i].copy_(rounded(self.masters[i], kind))

    def _whole(self, parts: Sequence[Tensor]) -> dict[str, Tensor]:
        return {
            name: rounded(part, self.types[i]) if i in self.types else part
            for i, (name, part) in enumerate(super()._whole(list(parts)).items())
        }
