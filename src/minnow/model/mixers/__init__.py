"""What mixes positions in a layer: one module per form, built from its configuration.

A mixer has ``forward(x, rotary, documents)`` for training, ``prefill(x, rotary, rows, capacity, last)`` and
``step(x, rotary, lengths, state)`` for decoding, and ``blocks()`` for optimisers that look at single matrices.
"""

from __future__ import annotations

from minnow.model import config
from minnow.model.mixers.attention import Attention
from minnow.model.mixers.gated_delta import GatedDelta
from minnow.model.mixers.gated_linear import GatedLinear
from minnow.model.mixers.short_conv import ShortConv

Mixer = Attention | ShortConv | GatedDelta | GatedLinear


def build_mixer(shape: config.Mixer, model: config.ModelConfig) -> Mixer:
    """The module of ``shape`` in ``model``."""
    match shape:
        case config.Attention():
            return Attention(shape, model)
        case config.ShortConv():
            return ShortConv(shape, model)
        case config.GatedDelta():
            return GatedDelta(shape, model)
        case config.GatedLinear():
            return GatedLinear(shape, model)


__all__ = ["Attention", "GatedDelta", "GatedLinear", "Mixer", "ShortConv", "build_mixer"]
