"""Families in Llama's layout: Llama, Qwen3 (head norms) and Gemma 3 (offset and sandwich norms, mostly windows)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from minnow.errors import UserError
from minnow.model.config import ATTENTION, SLIDING, Attention, Dense, LayerConfig, ModelConfig, Rope
from minnow.model.families import slots
from minnow.model.families.reading import (
    attentions,
    common,
    expect,
    older_rope,
    only,
    read_rope,
    refuse,
    write_common,
    write_rope,
    write_scaling,
)
from minnow.model.families.slots import Slot


def _attention(config: Mapping[str, Any], rope: Rope, **more: Any) -> Attention:
    heads = int(config["num_attention_heads"])
    head_dim = int(config.get("head_dim") or int(config["hidden_size"]) // heads)
    return Attention(heads, int(config.get("num_key_value_heads") or heads), head_dim, rope, **more)


def _layers(config: Mapping[str, Any], mixers: dict[str, Attention], kinds: list[str]) -> tuple[LayerConfig, ...]:
    if unknown := set(kinds) - set(mixers):
        raise UserError(f"unknown mixer {min(unknown)!r}; the mixers are {' and '.join(map(repr, mixers))}")
    gelu = "gelu" in str(config.get("hidden_activation") or config.get("hidden_act"))
    dense = Dense(int(config["intermediate_size"]), "gelu" if gelu else "silu")
    return tuple(LayerConfig(mixers[kind], dense) for kind in kinds)


def read(config: Mapping[str, Any]) -> ModelConfig:
    """Llama and Qwen3."""
    refuse(config, attention_bias=False, mlp_bias=False, hidden_act="silu")
    family, layers = config["model_type"], int(config["num_hidden_layers"])
    attention = _attention(config, older_rope(config, 1e4), qk_norm=family == "qwen3")
    mixers, kinds = {ATTENTION: attention}, [ATTENTION] * layers
    if family == "qwen3" and config.get("use_sliding_window"):
        mixers[SLIDING] = replace(attention, window=int(config["sliding_window"]))
        first = int(config.get("max_window_layers", 28))
        kinds = list(config.get("layer_types") or [ATTENTION if i < first else SLIDING for i in range(layers)])
    return ModelConfig(family, layers=_layers(config, mixers, kinds), **common(config))


def read_gemma(config: Mapping[str, Any]) -> ModelConfig:
    """Gemma 3's text model: five layers with a window and a rotation of their own to one that sees everything."""
    refuse(config, attention_bias=False, use_bidirectional_attention=False, hidden_activation="gelu_pytorch_tanh")
    ropes = config.get("rope_parameters") or {}
    everywhere = read_rope(ropes.get(ATTENTION) or config.get("rope_scaling") or {}, config.get("rope_theta", 1e6))
    local = read_rope(ropes.get(SLIDING) or {}, config.get("rope_local_base_freq", 1e4))
    cap = config.get("attn_logit_softcapping")
    attention = _attention({"head_dim": 256, **config}, everywhere, softcap=None if cap is None else float(cap))
    scalar = float(config.get("query_pre_attn_scalar", 256))
    if scalar != attention.head_dim:
        attention = replace(attention, scale=scalar**-0.5)
    mixers = {
        ATTENTION: attention,
        SLIDING: replace(attention, rope=local, window=int(config.get("sliding_window") or 4096)),
    }
    every = int(config.get("sliding_window_pattern") or config.get("_sliding_window_pattern") or 6)
    layers = range(int(config["num_hidden_layers"]))
    kinds = list(config.get("layer_types") or [SLIDING if (i + 1) % every else ATTENTION for i in layers])
    cap = config.get("final_logit_softcapping")
    defaults = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1, "vocab_size": 262_208}
    return ModelConfig(
        "gemma3_text",
        layers=_layers({"hidden_activation": "gelu_pytorch_tanh", **config}, mixers, kinds),
        norm_offset=True,
        sandwich=True,
        embedding_scale=int(config["hidden_size"]) ** 0.5,
        logit_softcap=None if cap is None else float(cap),
        **common(defaults | dict(config), tied=True),
    )


def _write_shape(config: ModelConfig, plain: Attention) -> dict[str, Any]:
    return {
        "intermediate_size": _dense(config).width,
        "num_attention_heads": plain.heads,
        "num_key_value_heads": plain.kv_heads,
        "head_dim": plain.head_dim,
        "attention_bias": False,
    }


def _dense(config: ModelConfig) -> Dense:
    shape = only((layer.feed_forward for layer in config.layers), "feed-forward", config.family)
    wanted = "gelu" if config.family == "gemma3_text" else "silu"
    if not isinstance(shape, Dense) or shape.activation != wanted:
        raise UserError(f"a {config.family!r} checkpoint has dense {wanted} feed-forwards; use the family 'minnow'")
    return shape


def _unscaled(config: ModelConfig) -> None:
    if config.embedding_scale != 1.0 or config.logit_softcap is not None:
        raise UserError(
            f"a {config.family!r} checkpoint has no embedding scale and no soft-capping; use the family 'minnow'"
        )


def write(config: ModelConfig) -> dict[str, Any]:
    expect(config, Attention)
    _unscaled(config)
    family, found = config.family, attentions(config)
    plain = only((replace(a, window=None) for a in found), "heads and rotation", family)
    wanted = Attention(plain.heads, plain.kv_heads, plain.head_dim, plain.rope, qk_norm=family == "qwen3")
    windows = {a.window for a in found if a.window is not None}
    if plain != wanted or (family == "llama" and windows) or plain.rope.share != 1.0:
        raise UserError(f"a {family!r} checkpoint has no words for {plain}; use the family 'minnow'")
    architecture = "LlamaForCausalLM" if family == "llama" else "Qwen3ForCausalLM"
    written = write_common(config, architecture) | _write_shape(config, plain) | write_scaling(plain.rope)
    written |= {"hidden_act": "silu"}
    if family == "llama":
        return written | {"mlp_bias": False}
    return written | {
        "use_sliding_window": bool(windows),
        "sliding_window": only(windows or {None}, "window", family),
        "max_window_layers": config.num_layers,
        "layer_types": list(config.layer_types),
    }


def write_gemma(config: ModelConfig) -> dict[str, Any]:
    expect(config, Attention, norm_offset=True, sandwich=True)
    found, family = attentions(config), config.family
    plain = only((replace(a, rope=Rope(1.0), window=None) for a in found), "heads", family)
    if plain.output_gate or not plain.qk_norm or config.embedding_scale != config.hidden_size**0.5:
        raise UserError("a 'gemma3_text' checkpoint has head norms, no gate and scaled embeddings; use 'minnow'")
    defaults = {ATTENTION: Rope(1e6), SLIDING: Rope(1e4)}
    ropes = {
        kind: only((a.rope for a in found if a.kind == kind) if kind in config.layer_types else [rope], "rope", family)
        for kind, rope in defaults.items()
    }
    scalar = plain.head_dim if plain.scale is None else plain.scale**-2
    return (
        write_common(config, "Gemma3ForCausalLM")
        | _write_shape(config, plain)
        | {
            "hidden_activation": "gelu_pytorch_tanh",
            "query_pre_attn_scalar": round(scalar) if abs(scalar - round(scalar)) < 1e-6 * scalar else scalar,
            "sliding_window": only({a.window for a in found if a.window is not None} or {4096}, "window", family),
            "layer_types": list(config.layer_types),
            "rope_theta": ropes[ATTENTION].theta,
            "rope_local_base_freq": ropes[SLIDING].theta,
            "rope_parameters": {kind: write_rope(rope) for kind, rope in ropes.items()},
            "final_logit_softcapping": config.logit_softcap,
            "attn_logit_softcapping": plain.softcap,
            "use_bidirectional_attention": False,
        }
    )


def tensors(config: ModelConfig) -> Iterator[Slot]:
    yield from slots.ends(config, "model.norm.weight")
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        assert isinstance(layer.mixer, Attention) and isinstance(layer.feed_forward, Dense), "of a config written so"
        yield from block(ours, theirs, config.sandwich)
        yield from slots.attention(ours + "mixer.", theirs + "self_attn.", layer.mixer)
        yield from mlp(ours, theirs, layer.feed_forward)


def block(ours: str, theirs: str, sandwich: bool) -> Iterator[Slot]:
    """The norms of a layer, which Gemma counts otherwise."""
    yield slots.same(ours + "mixer_norm", theirs + "input_layernorm.weight")
    if not sandwich:
        yield slots.same(ours + "feed_forward_norm", theirs + "post_attention_layernorm.weight")
        return
    yield slots.same(ours + "mixer_out_norm", theirs + "post_attention_layernorm.weight")
    yield slots.same(ours + "feed_forward_norm", theirs + "pre_feedforward_layernorm.weight")
    yield slots.same(ours + "feed_forward_out_norm", theirs + "post_feedforward_layernorm.weight")


def mlp(ours: str, theirs: str, shape: Dense) -> Iterator[Slot]:
    names = ("gate_proj", "up_proj", "down_proj")
    return slots.dense(ours + "feed_forward.", theirs + "mlp.", shape, names)
