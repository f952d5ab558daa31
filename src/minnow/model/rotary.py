"""Rotary embeddings in the half-rotation layout (arXiv 2104.09864), and how families stretch them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from minnow.model import config

RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines, float32, ``[..., rotary_dim]`` each."""


def frequencies(shape: config.Attention, device: torch.device | None = None) -> Tensor:
    """Radians per position of each pair of dimensions, float32 ``[rotary_dim / 2]``."""
    rope, width = shape.rope, shape.rotary_dim
    exponents = torch.arange(0, width, 2, device=device, dtype=torch.float32) / width
    turns = 1.0 / rope.theta**exponents
    if rope.proportional:
        turns[int(shape.head_dim * rope.share) // 2 :] = 0.0
    scaling = rope.scaling
    if scaling is None:
        return turns
    if scaling.kind == "linear":
        return turns / scaling.factor
    wavelengths = 2 * math.pi / turns
    smooth = (scaling.original / wavelengths - scaling.low) / (scaling.high - scaling.low)
    between = (1 - smooth) * turns / scaling.factor + smooth * turns
    slow, fast = wavelengths > scaling.original / scaling.low, wavelengths < scaling.original / scaling.high
    return torch.where(fast, turns, torch.where(slow, turns / scaling.factor, between))


def rotary_table(positions: Tensor, shape: config.Attention) -> RotaryTable:
    """The table of integer ``positions [...]``: two tensors ``[..., rotary_dim]``."""
    angles = positions[..., None].float() * frequencies(shape, positions.device)
    angles = torch.cat([angles, angles], dim=-1)
    return angles.cos(), angles.sin()
