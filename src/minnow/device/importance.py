"""What errors in the columns of each matrix cost: the mean square of what the model multiplies them by.

To first order a rounding error in a column adds as much to a matrix's squared output error as the column's input is large,
which is what llama.cpp's importance matrix holds too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.families import FAMILIES
from minnow.model.language_model import LanguageModel
from minnow.model.linear import Linear


@torch.no_grad()
def column_importance(model: LanguageModel, sequences: Iterable[Sequence[int]]) -> dict[str, Tensor]:
    """Mean squared inputs, float32 ``[columns]``, by the checkpoint's tensor names; experts and norms have none.

    Args:
        sequences: token ids that the model reads, one at a time.

    Raises:
        UserError: a model without a family, which no file is written of, or there is nothing to read.
    """
    if not isinstance(model, Backbone):
        raise UserError(
            "no file is written of a model without a family, so nothing weighs its columns; export one of a family"
        )
    sums: dict[str, Tensor] = {}

    def add(name: str, module: Any, arguments: tuple[Tensor]) -> None:
        squares = arguments[0].float().square().flatten(0, -2).sum(0)
        sums[name] = sums[name] + squares if name in sums else squares

    hooks = [
        module.register_forward_pre_hook(partial(add, f"{name}.weight"))
        for name, module in model.named_modules()
        if isinstance(module, Linear)
    ]
    read = 0
    try:
        for ids in sequences:
            add("embedding" if model.config.tied else "output", None, (model(torch.tensor([list(ids)])),))
            read += len(ids)
    finally:
        for hook in hooks:
            hook.remove()
    if not read:
        raise UserError("there is no text to measure importance on; give one that is not empty")
    slots = [slot for slot in FAMILIES[model.config.family].tensors(model.config) if slot.ours in sums]
    return {name: sums[slot.ours] / read for slot in slots for name in slot.theirs}
