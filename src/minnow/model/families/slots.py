"""Where each of Minnow's tensors stands in a checkpoint, by family: names, and how fused tensors come apart."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from minnow.model.config import Attention, Dense, Experts, ModelConfig


@dataclass(frozen=True)
class Slot:
    """One of Minnow's tensors and the checkpoint's tensors that it is made of; ``join`` and ``split`` are inverses."""

    ours: str
    theirs: tuple[str, ...]
    join: Callable[[Sequence[Tensor]], Tensor]
    split: Callable[[Tensor], Sequence[Tensor]]


def same(ours: str, theirs: str) -> Slot:
    return Slot(ours, (theirs,), lambda parts: parts[0], lambda whole: [whole])


def stacked(ours: str, theirs: Sequence[str], rows: Sequence[int]) -> Slot:
    """Matrices one below the other, of ``rows`` rows each."""
    return Slot(ours, tuple(theirs), lambda parts: torch.cat(tuple(parts)), lambda whole: whole.split(list(rows)))


def taps(ours: str, theirs: str) -> Slot:
    """Depthwise convolution weights: ``[D, K]`` here, ``[D, 1, K]`` there."""
    return Slot(ours, (theirs,), lambda parts: parts[0][:, 0], lambda whole: [whole[:, None]])


def attention(ours: str, theirs: str, shape: Attention, out: str = "o_proj", norms: str = "norm") -> Iterator[Slot]:
    """Projections, head norms and output gate of an attention layer."""
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    names, rows = [f"{theirs}{part}_proj.weight" for part in "qkv"], [query, key, key]
    if shape.output_gate == "element":
        yield _gated_queries(f"{ours}qkv_proj.weight", names, rows, shape)
    elif shape.output_gate == "head":
        yield stacked(f"{ours}qkv_proj.weight", [*names, f"{theirs}gate_proj.weight"], [*rows, shape.heads])
    else:
        yield stacked(f"{ours}qkv_proj.weight", names, rows)
    yield same(f"{ours}out_proj.weight", f"{theirs}{out}.weight")
    if shape.qk_norm:
        yield same(f"{ours}q_norm", f"{theirs}q_{norms}.weight")
        yield same(f"{ours}k_norm", f"{theirs}k_{norms}.weight")


def _gated_queries(ours: str, theirs: Sequence[str], rows: Sequence[int], shape: Attention) -> Slot:
    """Qwen3.5's ``q_proj`` holds each head's query and gate in turn; here all gates come last."""

    def join(parts: Sequence[Tensor]) -> Tensor:
        query, gate = (half.flatten(0, 1) for half in parts[0].unflatten(0, (shape.heads, -1)).chunk(2, dim=1))
        return torch.cat([query, parts[1], parts[2], gate])

    def split(whole: Tensor) -> Sequence[Tensor]:
        query, key, value, gate = whole.split([*rows, rows[0]])
        heads = (part.unflatten(0, (shape.heads, -1)) for part in (query, gate))
        return [torch.cat(list(heads), dim=1).flatten(0, 1), key, value]

    return Slot(ours, tuple(theirs), join, split)


def dense(ours: str, theirs: str, shape: Dense, names: tuple[str, str, str]) -> Iterator[Slot]:
    """Gate, up and down, under the family's ``names``."""
    gate, up, down = (f"{theirs}{name}.weight" for name in names)
    yield stacked(f"{ours}gate_up_proj.weight", [gate, up], [shape.width] * 2)
    yield same(f"{ours}down_proj.weight", down)


def experts(ours: str, theirs: str, shape: Experts, hidden_size: int) -> Iterator[Slot]:
    """LFM2-MoE's: router ``gate``, ``expert_bias``, and ``w1, w3, w2`` of each expert."""
    each = [f"{theirs}experts.{i}." for i in range(shape.experts)]
    yield same(f"{ours}router", f"{theirs}gate.weight")
    gate_up = [f"{expert}{name}.weight" for expert in each for name in ("w1", "w3")]
    yield stacked(f"{ours}gate_up", gate_up, [shape.width] * 2 * shape.experts)
    yield stacked(f"{ours}down", [f"{expert}w2.weight" for expert in each], [hidden_size] * shape.experts)
    if shape.selection_bias:
        yield same(f"{ours}selection_bias", f"{theirs}expert_bias")


def ends(config: ModelConfig, final_norm: str) -> Iterator[Slot]:
    """Embedding, final norm and head."""
    yield same("embedding", "model.embed_tokens.weight")
    yield same("final_norm", final_norm)
    if not config.tied:
        yield same("output", "lm_head.weight")
