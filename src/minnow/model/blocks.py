"""Weights as GGUF's block types hold them: 32 neighbours of a row share a half-precision scale.

Rounding is that of the ``gguf`` package and of llama.cpp, bit for bit, so that what is trained is what is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 32
"""Weights of a row that share a scale."""

# Inverse scales that a search tries, in eighths of a block's largest weight around the plain one, as llama.cpp has them.
_TRIED = [-(8 + 0.1 * step) for step in range(-9, 10)]


def q4_0(values: Tensor, importance: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Four bits a weight: ``scale * (code - 8)``.

    Args:
        values: float ``[rows, columns]``, columns a multiple of 32.
        importance: ``[columns]``, mean squares of what the columns are multiplied by; with it, the scale of every block
            is the best of several for the squared errors, the plain one among them. Errors of large weights count more,
            by llama.cpp's rule, which measures better than importance alone: ``importance * sqrt(row's mean square +
            weight²)``.

    Returns:
        Codes uint8 0 … 15 ``[blocks, 32]`` and scales float16 ``[blocks, 1]``.
    """
    x = values.float().reshape(-1, BLOCK)
    largest = x.gather(1, x.abs().argmax(1, keepdim=True))
    codes, scale = _q4_0_codes(x, largest / -8)
    if importance is None:
        return codes, scale
    power = values.float().square().mean(1, keepdim=True)
    weight = (importance.float() * (power + values.float().square()).sqrt()).reshape(-1, BLOCK)
    error = _error(x, codes, scale, weight)
    for tried in _TRIED:
        inverse = torch.where(largest == 0, 0.0, tried / largest)
        level = (x * inverse).round_().clamp_(-8, 7)
        norm = (weight * level * level).sum(1, keepdim=True)
        best = torch.where(norm > 0, (weight * x * level).sum(1, keepdim=True) / norm, 0.0).half()
        other = (level + 8).to(torch.uint8)
        found = _error(x, other, best, weight)
        better = found < error
        error = torch.where(better, found, error)
        codes, scale = torch.where(better, other, codes), torch.where(better, best, scale)
    return codes, scale


def _q4_0_codes(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
    inverse = torch.where(scale == 0, 0.0, 1 / scale)
    codes = (x.double() * inverse.double() + 8.5).clamp_(0, 15).to(torch.uint8)  # cut, not rounded
    return codes, scale.half()


def _error(x: Tensor, codes: Tensor, scale: Tensor, weight: Tensor) -> Tensor:
    return (weight * (x - scale.float() * (codes.float() - 8)).square()).sum(1, keepdim=True)


def q8_0(values: Tensor) -> tuple[Tensor, Tensor]:
    """Eight bits a weight: ``scale * code``; codes int8 -127 … 127, else as :func:`q4_0`."""
    x = values.float().reshape(-1, BLOCK)
    scale = x.abs().amax(1, keepdim=True) / 127
    scaled = x * torch.where(scale == 0, 0.0, 1 / scale)
    size = scaled.abs()
    whole = size.floor()
    rounded = whole + (2 * (size - whole)).floor()  # halves away from zero
    return (scaled.sign() * rounded).to(torch.int8), scale.half()


def rounded(values: Tensor, kind: str) -> Tensor:
    """``values`` after a way through a file: float32 of the same shape.

    Args:
        kind: ``"Q4_0"`` or ``"Q8_0"``.
    """
    codes, scale = q8_0(values) if kind == "Q8_0" else q4_0(values)
    level = codes.float() if kind == "Q8_0" else codes.float() - 8
    return (scale.float() * level).view(values.shape)
