"""Rows of different lengths one after another, so that what is done position by position never meets padding."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor


class Rows:
    """``B`` rows of ``N`` positions together, the longest of ``T``; ``lengths [B]``, at least 1 each.

    Attributes:
        positions: ``[N]``, each one's place in its row.
        documents: ``[1, N]``, the row of each, as the kernels take documents.
        ends: ``[B]``, where among the ``N`` each row's last position stands.
    """

    def __init__(self, lengths: Tensor) -> None:
        self.lengths, self.width, self._shortest = lengths, int(lengths.max()), int(lengths.min())
        self.ends = lengths.cumsum(0) - 1
        owners = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
        self._begins = self.ends + 1 - lengths
        self.positions = torch.arange(len(owners), device=lengths.device) - self._begins[owners]
        self.documents = owners[None]
        self._places = owners * self.width + self.positions

    @cached_property
    def _sources(self) -> Tensor:
        """``[B * T]``, which of the ``N`` stands at each place of the padded rows: after the last one, that again."""
        along = torch.arange(self.width, device=self.lengths.device)
        return (self._begins[:, None] + torch.minimum(along, self.lengths[:, None] - 1)).flatten()

    @cached_property
    def padding(self) -> Tensor:
        """``[B, T]``, true behind a row's end."""
        return torch.arange(self.width, device=self.lengths.device) >= self.lengths[:, None]

    def padded(self, x: Tensor) -> Tensor:
        """``[N, ...]`` to ``[B, T, ...]``; what stands behind a row's end is finite and no more."""
        even = len(x) == len(self.lengths) * self.width
        return (x if even else x[self._sources]).unflatten(0, (len(self.lengths), self.width))

    def flat(self, x: Tensor) -> Tensor:
        """``[B, T, ...]`` to ``[N, ...]``."""
        return x.flatten(0, 1)[self._places]

    def last(self, x: Tensor, count: int) -> Tensor:
        """The last ``count`` positions of each row of ``x [N, C]``, ``[B, count, C]``; zeros before the first."""
        back = torch.arange(1 - count, 1, device=x.device)
        taken = x[(self.ends[:, None] + back).clamp(min=0)]
        return taken if self._shortest >= count else taken * (self.lengths[:, None] > -back)[..., None]
