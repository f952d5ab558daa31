"""LFM3: short convolutions, sliding-window and global attention with a gate per head, norms on both sides."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from minnow.errors import UserError
from minnow.model.config import (
    ATTENTION,
    CONV,
    SLIDING,
    Attention,
    Dense,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.model.families import lfm2
from minnow.model.families.reading import attentions, common, expect, only, read_rope, refuse, write_common, write_rope
from minnow.model.families.slots import Slot

_ROPES = {ATTENTION: Rope(1e6, 0.5, proportional=True), SLIDING: Rope(1e4)}


def read(config: Mapping[str, Any]) -> ModelConfig:
    refuse(config, conv_bias=False, attention_bias=False)
    ropes = config.get("rope_parameters") or {kind: write_rope(rope) for kind, rope in _ROPES.items()}
    attention = Attention(
        int(config["num_attention_heads"]),
        int(config["num_key_value_heads"]),
        int(config.get("head_dim", 128)),
        read_rope(ropes.get(ATTENTION) or {}, 1e6),
        output_gate="head" if config.get("use_attention_gate", True) else None,
    )
    mixers: dict[str, Mixer] = {CONV: ShortConv(int(config.get("conv_L_cache", 7))), ATTENTION: attention}
    window = config.get("sliding_window", 256)
    if window is not None:
        mixers[SLIDING] = replace(attention, rope=read_rope(ropes.get(SLIDING) or {}, 1e6), window=int(window))
    kinds = config.get("layer_types") or [_default(i) for i in range(int(config["num_hidden_layers"]))]
    if unknown := set(kinds) - set(mixers):
        raise UserError(f"unknown mixer {min(unknown)!r}; the mixers are {', '.join(map(repr, mixers))}")
    dense = Dense(int(config["intermediate_size"]))
    return ModelConfig(
        "lfm3",
        layers=tuple(LayerConfig(mixers[kind], dense) for kind in kinds),
        sandwich=bool(config.get("use_sandwich_norm", True)),
        **common(config, "norm_eps", tied=True),
    )


def _default(layer: int) -> str:
    return ATTENTION if layer % 4 == 2 else SLIDING if layer % 4 == 0 and layer else CONV


def write(config: ModelConfig) -> dict[str, Any]:
    expect(config, ShortConv, Attention, sandwich=config.sandwich)
    found = attentions(config)
    plain = only((replace(a, rope=Rope(1.0), window=None) for a in found), "heads", "lfm3")
    if replace(plain, output_gate=None) != Attention(plain.heads, plain.kv_heads, plain.head_dim, Rope(1.0)):
        raise UserError("an 'lfm3' checkpoint has attention with head norms and plain scores; use the family 'minnow'")
    if plain.output_gate == "element":
        raise UserError("an 'lfm3' checkpoint has one gate per head; use the family 'minnow'")
    ropes = {
        kind: only((a.rope for a in found if a.kind == kind) if kind in config.layer_types else [rope], "rope", "lfm3")
        for kind, rope in _ROPES.items()
    }
    windows: set[int | None] = {a.window for a in found if a.window is not None} or {None}
    kernels = {layer.mixer.kernel for layer in config.layers if isinstance(layer.mixer, ShortConv)} or {7}
    return write_common(config, "Lfm3ForCausalLM", "norm_eps") | {
        "intermediate_size": only((layer.feed_forward for layer in config.layers), "feed-forward", "lfm3").width,
        "num_attention_heads": plain.heads,
        "num_key_value_heads": plain.kv_heads,
        "head_dim": plain.head_dim,
        "layer_types": list(config.layer_types),
        "conv_L_cache": only(kernels, "convolution kernel", "lfm3"),
        "conv_bias": False,
        "sliding_window": only(windows, "window", "lfm3"),
        "rope_parameters": {kind: write_rope(rope) for kind, rope in ropes.items()},
        "use_sandwich_norm": config.sandwich,
        "use_attention_gate": plain.output_gate is not None,
        "attention_bias": False,
    }


def tensors(config: ModelConfig) -> Iterator[Slot]:
    return lfm2.tensors(config, "o_proj", "norm")
