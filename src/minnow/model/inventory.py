"""Every tensor of a model, from its configuration alone: what it is for and what shape it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from minnow.model.config import Attention, Experts, FeedForward, GatedDelta, GatedLinear, Mixer, ModelConfig, ShortConv

# In the order in which a table shows them.
PARTS = ("embedding", "head", "attention", "conv", "linear_attention", "mlp", "experts", "router", "norms")


@dataclass(frozen=True)
class Tensor:
    """One weight, or ``count`` of the same shape.

    Attributes:
        part: one of :data:`PARTS`; a mixer's own norms and biases belong to the mixer.
        rows, columns: outputs and inputs of a matrix, ``[1, n]`` for a vector, ``[channels, taps]`` for a convolution.
        role: ``"matrix"`` multiplies every token's vector; ``"table"`` is looked up; ``"tied"`` is both, embedding and
            head; ``"taps"`` are a depthwise convolution's; ``"vector"`` is everything else.
        active: how many of ``count`` a token uses; None for all.
    """

    part: str
    rows: int
    columns: int
    role: Literal["matrix", "table", "tied", "taps", "vector"] = "matrix"
    count: int = 1
    active: int | None = None

    @property
    def size(self) -> int:
        """Numbers in one of them."""
        return self.rows * self.columns

    @property
    def parameters(self) -> int:
        return self.count * self.size

    @property
    def active_parameters(self) -> int:
        return (self.count if self.active is None else self.active) * self.size


def tensors(config: ModelConfig) -> Iterator[Tensor]:
    """The trained tensors; a router's selection bias is not trained by gradients and not counted, as in the field."""
    d = config.hidden_size
    yield Tensor("embedding", config.vocab_size, d, "tied" if config.tied else "table")
    if not config.tied:
        yield Tensor("head", config.vocab_size, d)
    for layer in config.layers:
        yield from part_tensors(layer.mixer, d)
        yield from part_tensors(layer.feed_forward, d)
    yield Tensor("norms", 1, d, "vector", (4 if config.sandwich else 2) * config.num_layers + 1)


def part_tensors(part: Mixer | FeedForward, d: int) -> Iterator[Tensor]:
    """Those of one mixer or feed-forward in a stream of width ``d``."""
    yield from _feed_forward(part, d) if isinstance(part, FeedForward) else _mixer(part, d)


def _mixer(mixer: Mixer, d: int) -> Iterator[Tensor]:
    if isinstance(mixer, Attention):
        part, query, key = "attention", mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
        yield Tensor(part, query * (2 if mixer.output_gate == "element" else 1), d)
        yield Tensor(part, key, d, count=2)
        yield Tensor(part, d, query)
        if mixer.output_gate == "head":
            yield Tensor(part, mixer.heads, d)
        if mixer.qk_norm:
            yield Tensor(part, 1, mixer.head_dim, "vector", 2)
    elif isinstance(mixer, ShortConv):
        yield Tensor("conv", 3 * d, d)
        yield Tensor("conv", d, d)
        yield Tensor("conv", d, mixer.kernel, "taps")
    elif isinstance(mixer, GatedDelta):
        part, value = "linear_attention", mixer.value_heads * mixer.value_dim
        mixed = conv_channels(mixer)
        yield Tensor(part, mixed, d)
        yield Tensor(part, value, d)
        yield Tensor(part, mixer.value_heads, d, count=2)
        yield Tensor(part, d, value)
        yield Tensor(part, mixed, mixer.kernel, "taps")
        yield Tensor(part, 1, mixer.value_heads, "vector", 2)
        yield Tensor(part, 1, mixer.value_dim, "vector")
    else:
        part, key, value = "linear_attention", mixer.heads * mixer.key_dim, mixer.heads * mixer.value_dim
        yield Tensor(part, key, d, count=2)
        yield Tensor(part, value, d, count=2)
        yield Tensor(part, d, value)
        yield Tensor(part, mixer.gate_rank, d)
        yield Tensor(part, key, mixer.gate_rank)
        yield Tensor(part, 1, key, "vector")
        yield Tensor(part, 1, mixer.value_dim, "vector")


def _feed_forward(feed_forward: FeedForward, d: int) -> Iterator[Tensor]:
    width = feed_forward.width
    if isinstance(feed_forward, Experts):
        experts, active = feed_forward.experts, feed_forward.active
        yield Tensor("router", experts, d)
        yield Tensor("experts", width, d, count=2 * experts, active=2 * active)
        yield Tensor("experts", d, width, count=experts, active=active)
    else:
        yield Tensor("mlp", width, d, count=2)
        yield Tensor("mlp", d, width)


def conv_channels(mixer: GatedDelta) -> int:
    """Channels of a delta net's convolution: queries, keys and values side by side."""
    return 2 * mixer.key_heads * mixer.key_dim + mixer.value_heads * mixer.value_dim


def recurrent_values(mixer: Mixer) -> int:
    """Numbers in the matrix state of one sequence."""
    if isinstance(mixer, GatedDelta):
        return mixer.value_heads * mixer.key_dim * mixer.value_dim
    return mixer.heads * mixer.key_dim * mixer.value_dim if isinstance(mixer, GatedLinear) else 0


def tail_values(mixer: Mixer, d: int) -> int:
    """Numbers that a causal convolution remembers of one sequence: all taps but the newest, of every channel."""
    if isinstance(mixer, ShortConv):
        return d * (mixer.kernel - 1)
    return conv_channels(mixer) * (mixer.kernel - 1) if isinstance(mixer, GatedDelta) else 0


def kv_values(mixer: Mixer) -> int:
    """Numbers that attention keeps of each position it can still see."""
    return 2 * mixer.kv_heads * mixer.head_dim if isinstance(mixer, Attention) else 0
