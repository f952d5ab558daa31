"""Merging checkpoints of one family: uniform and weighted soups (arXiv 2203.05482)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from minnow.errors import UserError


def soup(members: Sequence[Mapping[str, Tensor]], shares: Sequence[float] | None = None) -> dict[str, Tensor]:
    """Weighted average of state dicts of one shape; equal shares by default.

    Raises:
        UserError: the members do not have the same tensors.
    """
    shares = shares or [1 / len(members)] * len(members)
    first = members[0]
    for member in members[1:]:
        if {n: t.shape for n, t in member.items()} != {n: t.shape for n, t in first.items()}:
            raise UserError("the checkpoints differ in shape and cannot be averaged; merge checkpoints of one model")
    return {
        name: sum(
            (share * member[name].float() for share, member in zip(shares, members, strict=True)),
            start=0.0 * tensor.float(),
        )
        for name, tensor in first.items()
    }
