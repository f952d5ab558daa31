"""Soups of state dicts."""

from __future__ import annotations

import pytest
import torch

from minnow.errors import UserError
from minnow.posttrain.merge import soup


def member(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in (("a", (3, 4)), ("b", (5,)))}


@pytest.mark.parametrize("shares", [None, (0.2, 0.3, 0.5), (1.0, 0.0, 0.0)])
def test_a_soup_is_the_weighted_average(shares: tuple[float, ...] | None) -> None:
    members = [member(seed) for seed in range(3)]
    before = [{name: tensor.clone() for name, tensor in each.items()} for each in members]
    made = soup(members, shares)
    for name in ("a", "b"):
        wanted = sum(s * m[name].double() for s, m in zip(shares or (1 / 3,) * 3, members, strict=True))
        torch.testing.assert_close(made[name].double(), wanted, atol=1e-6, rtol=1e-6)
        assert all(torch.equal(x[name], y[name]) for x, y in zip(before, members, strict=True))


def test_halves_are_averaged_in_float32() -> None:
    """256 and 258 have no bfloat16 between them."""
    members = [{"a": torch.tensor([value]).bfloat16()} for value in (256.0, 258.0)]
    assert soup(members)["a"].dtype == torch.float32 and float(soup(members)["a"]) == 257.0


def test_different_shapes_are_refused() -> None:
    for other in ({"a": torch.ones(3, 4)}, {"a": torch.ones(3, 4), "b": torch.ones(6)}):
        with pytest.raises(UserError, match="differ in shape"):
            soup([member(0), other])
