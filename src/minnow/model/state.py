"""What decoding remembers of each row: convolution inputs, keys and values, lengths."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass
class ConvState:
    """The last ``kernel - 1`` gated inputs, ``[B, kernel - 1, D]``."""

    inputs: Tensor

    def select(self, rows: Tensor) -> ConvState:
        return ConvState(self.inputs[rows])

    def join(self, other: ConvState) -> ConvState:
        return ConvState(torch.cat([self.inputs, other.inputs]))


@dataclass
class AttentionState:
    """Keys and values with room for ``capacity`` positions, ``[B, G, capacity, h]`` each."""

    keys: Tensor
    values: Tensor

    def select(self, rows: Tensor) -> AttentionState:
        return AttentionState(self.keys[rows], self.values[rows])

    def join(self, other: AttentionState) -> AttentionState:
        capacity = max(self.keys.shape[2], other.keys.shape[2])
        parts = [
            [F.pad(tensor, (0, 0, 0, capacity - tensor.shape[2])) for tensor in (state.keys, state.values)]
            for state in (self, other)
        ]
        return AttentionState(*(torch.cat(pair) for pair in zip(*parts, strict=True)))


@dataclass
class DecodeState:
    """States of all layers and ``lengths [B]``, the positions each row has read."""

    layers: list[ConvState | AttentionState]
    lengths: Tensor

    def select(self, rows: Tensor) -> DecodeState:
        """The state of ``rows`` (indices; a row may be taken more than once)."""
        return DecodeState([layer.select(rows) for layer in self.layers], self.lengths[rows])

    def join(self, other: DecodeState) -> DecodeState:
        """This state's rows followed by ``other``'s."""
        layers = [mine.join(theirs) for mine, theirs in zip(self.layers, other.layers, strict=True)]  # type: ignore[arg-type]
        return DecodeState(layers, torch.cat([self.lengths, other.lengths]))
