"""What decoding remembers of each row: convolution inputs, keys and values, memory matrices, lengths.

Rows come and go (``select``, ``join``), and a state can be kept and gone back to (``copy``, ``restore``).
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class LayerState:
    """The rows of one layer: tensors ``[B, ...]``."""

    def tensors(self) -> list[Tensor]:
        return [getattr(self, field.name) for field in fields(self)]

    def select(self, rows: Tensor) -> Self:
        return type(self)(*(tensor[rows] for tensor in self.tensors()))

    def join(self, other: Self) -> Self:
        return type(self)(*map(_stack, self.tensors(), other.tensors()))

    def copy(self) -> Self:
        return type(self)(*(tensor.clone() for tensor in self.tensors()))

    def restore(self, rows: Tensor, saved: Self) -> None:
        for field, theirs in zip(fields(self), saved.tensors(), strict=True):
            setattr(self, field.name, _replace(getattr(self, field.name), rows, theirs))


def _grown(tensor: Tensor, capacity: int) -> Tensor:
    """``[B, G, S, h]`` with room for ``capacity`` positions."""
    return F.pad(tensor, (0, 0, 0, capacity - tensor.shape[2]))


def _stack(first: Tensor, second: Tensor) -> Tensor:
    if first.shape[1:] != second.shape[1:]:  # only keys and values differ, in their capacity
        capacity = max(first.shape[2], second.shape[2])
        first, second = _grown(first, capacity), _grown(second, capacity)
    return torch.cat([first, second])


def _replace(tensor: Tensor, rows: Tensor, theirs: Tensor) -> Tensor:
    if tensor.shape[1:] != theirs.shape[1:]:
        capacity = max(tensor.shape[2], theirs.shape[2])
        tensor, theirs = _grown(tensor, capacity), _grown(theirs, capacity)
    return tensor.index_copy(0, rows, theirs)


@dataclass
class ConvState(LayerState):
    """The last ``kernel - 1`` inputs of a convolution, ``[B, kernel - 1, channels]``."""

    inputs: Tensor


@dataclass
class AttentionState(LayerState):
    """Keys and values, ``[B, G, S, h]`` each.

    Position ``p`` stands at ``p``; in a layer with a window at ``p % window``, so that ``S`` is at most the window.
    """

    keys: Tensor
    values: Tensor


@dataclass
class RecurrentState(LayerState):
    """The memory ``[B, H, K, V]`` in float32, and the inputs of the convolution before it (none: ``[B, 0, 0]``)."""

    inputs: Tensor
    matrix: Tensor


@dataclass
class DecodeState:
    """States of all layers and ``lengths [B]``, the positions each row has read."""

    layers: list[LayerState]
    lengths: Tensor

    def select(self, rows: Tensor) -> DecodeState:
        """The state of ``rows`` (indices; a row may be taken more than once)."""
        return DecodeState([layer.select(rows) for layer in self.layers], self.lengths[rows])

    def join(self, other: DecodeState) -> DecodeState:
        """This state's rows followed by ``other``'s."""
        layers = [mine.join(theirs) for mine, theirs in zip(self.layers, other.layers, strict=True)]
        return DecodeState(layers, torch.cat([self.lengths, other.lengths]))

    def copy(self) -> DecodeState:
        """The same rows in memory of their own: steps taken here do not show there."""
        return DecodeState([layer.copy() for layer in self.layers], self.lengths.clone())

    def restore(self, rows: Tensor, saved: DecodeState) -> None:
        """Take ``rows`` back to what they were: to the rows of ``saved``, in order."""
        for mine, theirs in zip(self.layers, saved.layers, strict=True):
            mine.restore(rows, theirs)
        self.lengths = self.lengths.index_copy(0, rows, saved.lengths)


def ring(heads: Tensor, lengths: Tensor, window: int) -> Tensor:
    """The last ``window`` valid positions of ``heads [B, T, G, h]``, each at its position modulo ``window``.

    Returns:
        ``[B, G, window, h]``, zeros where a row has fewer positions.
    """
    place = torch.arange(window, device=heads.device)
    position = place + (lengths[:, None] - 1 - place).div(window, rounding_mode="floor") * window
    index = position.clamp(min=0)[..., None, None].expand(-1, -1, *heads.shape[2:])
    return (heads.gather(1, index) * (position >= 0)[..., None, None]).transpose(1, 2).contiguous()
