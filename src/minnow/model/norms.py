"""RMS norm weights, which some families store as their distance from one."""

from __future__ import annotations

import torch
from torch import Tensor


def multiplier(weight: Tensor, offset: bool) -> Tensor:
    """What a norm multiplies by: ``weight``, or ``1 + weight`` in at least float32."""
    if not offset:
        return weight
    return 1 + (weight if weight.dtype == torch.float64 else weight.float())
