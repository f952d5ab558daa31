"""Qwen3.5's text model: three gated delta nets to one attention layer with a gate, norms stored as offsets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minnow.errors import UserError
from minnow.model.config import ATTENTION, DELTA, Attention, Dense, GatedDelta, LayerConfig, ModelConfig, Rope
from minnow.model.families import slots
from minnow.model.families.llama import block, mlp
from minnow.model.families.reading import attentions, common, expect, older_rope, only, refuse, write_common, write_rope
from minnow.model.families.slots import Slot

_LINEAR = "linear_attention"


def read(config: Mapping[str, Any]) -> ModelConfig:
    refuse(config, attention_bias=False, hidden_act="silu")
    heads = int(config["num_attention_heads"])
    attention = Attention(
        heads,
        int(config.get("num_key_value_heads") or heads),
        int(config.get("head_dim") or 256),
        older_rope(config, 1e4, share=0.25),
        output_gate="element",
    )
    delta = GatedDelta(
        int(config.get("linear_num_key_heads", 16)),
        int(config.get("linear_num_value_heads", 32)),
        int(config.get("linear_key_head_dim", 128)),
        int(config.get("linear_value_head_dim", 128)),
        int(config.get("linear_conv_kernel_dim", 4)),
    )
    every = int(config.get("full_attention_interval", 4))
    layers = range(int(config["num_hidden_layers"]))
    kinds = config.get("layer_types") or [_LINEAR if (i + 1) % every else ATTENTION for i in layers]
    if unknown := set(kinds) - {_LINEAR, ATTENTION}:
        raise UserError(f"unknown mixer {min(unknown)!r}; the mixers are {_LINEAR!r} and {ATTENTION!r}")
    dense = Dense(int(config["intermediate_size"]))
    return ModelConfig(
        "qwen3_5_text",
        layers=tuple(LayerConfig(attention if kind == ATTENTION else delta, dense) for kind in kinds),
        norm_offset=True,
        **common(config),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    expect(config, Attention, GatedDelta, norm_offset=True)
    family = config.family
    default = Attention(1, 1, 256, Rope(1e7, 0.25), output_gate="element")
    attention = only(attentions(config) or [default], "heads and rotation", family)
    wanted = Attention(attention.heads, attention.kv_heads, attention.head_dim, attention.rope, output_gate="element")
    if attention != wanted or config.embedding_scale != 1.0 or config.logit_softcap is not None:
        raise UserError(f"a {family!r} checkpoint has no words for {attention}; use the family 'minnow'")
    found = [layer.mixer for layer in config.layers if isinstance(layer.mixer, GatedDelta)]
    delta = only(found or [GatedDelta(16, 32, 128, 128)], "delta net", family)
    dense = only((layer.feed_forward for layer in config.layers), "feed-forward", family)
    if dense != Dense(dense.width):
        raise UserError(f"a {family!r} checkpoint has dense silu feed-forwards; use the family 'minnow'")
    return write_common(config, "Qwen3_5ForCausalLM") | {
        "intermediate_size": dense.width,
        "num_attention_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "head_dim": attention.head_dim,
        "hidden_act": "silu",
        "attention_bias": False,
        "rope_parameters": write_rope(attention.rope),
        "partial_rotary_factor": attention.rope.share,
        "layer_types": [_LINEAR if kind == DELTA else kind for kind in config.layer_types],
        "linear_num_key_heads": delta.key_heads,
        "linear_num_value_heads": delta.value_heads,
        "linear_key_head_dim": delta.key_dim,
        "linear_value_head_dim": delta.value_dim,
        "linear_conv_kernel_dim": delta.kernel,
    }


def tensors(config: ModelConfig) -> Iterator[Slot]:
    yield from slots.ends(config, "model.norm.weight")
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        assert isinstance(layer.feed_forward, Dense), "a 'qwen3_5_text' config has no experts"
        yield from block(ours, theirs, sandwich=False)
        yield from mlp(ours, theirs, layer.feed_forward)
        if isinstance(layer.mixer, Attention):
            yield from slots.attention(ours + "mixer.", theirs + "self_attn.", layer.mixer)
        elif isinstance(layer.mixer, GatedDelta):
            yield from _delta(ours + "mixer.", theirs + "linear_attn.", layer.mixer)


def _delta(ours: str, theirs: str, shape: GatedDelta) -> Iterator[Slot]:
    key, value = shape.key_heads * shape.key_dim, shape.value_heads * shape.value_dim
    inputs = [theirs + "in_proj_qkv.weight", theirs + "in_proj_z.weight"]
    yield slots.stacked(ours + "in_proj.weight", inputs, [2 * key + value, value])
    gates = [theirs + "in_proj_b.weight", theirs + "in_proj_a.weight"]
    yield slots.stacked(ours + "gate_proj.weight", gates, [shape.value_heads] * 2)
    yield slots.taps(ours + "conv", theirs + "conv1d.weight")
    yield slots.same(ours + "log_rate", theirs + "A_log")
    yield slots.same(ours + "rate_bias", theirs + "dt_bias")
    yield slots.same(ours + "norm", theirs + "norm.weight")
    yield slots.same(ours + "out_proj.weight", theirs + "out_proj.weight")
