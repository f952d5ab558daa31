from __future__ import annotations

import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType, quants

from minnow.model.blocks import q4_0, rounded


def _weights(rows: int, columns: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(rows, columns, generator=generator) * torch.logspace(-6, 3, rows)[:, None]
    values[0, :32] = 0.0  # a block without a scale
    values[1, :32] = 0.25  # ties
    return values


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_rounding_is_the_gguf_packages(kind: str) -> None:
    values = _weights(64, 96)
    written = GGMLQuantizationType[kind]
    reference = quants.dequantize(quants.quantize(values.numpy(), written), written)
    np.testing.assert_array_equal(rounded(values, kind).numpy(), reference)


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0"])
def test_rounding_twice_is_rounding_once(kind: str) -> None:
    """So a checkpoint that holds rounded weights is written without a further loss."""
    once = rounded(_weights(64, 96), kind)
    torch.testing.assert_close(rounded(once, kind), once, rtol=0, atol=0)


def test_importance_lowers_the_weighted_error_of_every_block() -> None:
    values = torch.randn(32, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    importance = torch.rand(128, generator=torch.Generator().manual_seed(2)) ** 4

    cost = importance * (values.square().mean(1, keepdim=True) + values.square()).sqrt()

    def errors(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        decoded = (scale.double() * (codes.double() - 8)).view(32, 128)
        return (cost * (values - decoded) ** 2).view(-1, 32).sum(1)

    plain, weighted = errors(*q4_0(values)), errors(*q4_0(values, importance))
    assert (weighted <= plain * (1 + 1e-5)).all()
    assert weighted.sum() < 0.8 * plain.sum()
    # What is on a grid already stays there.
    grid = rounded(values, "Q4_0")
    codes, scale = q4_0(grid, importance)
    torch.testing.assert_close((scale.float() * (codes.float() - 8)).view(32, 128), grid, rtol=0, atol=0)
