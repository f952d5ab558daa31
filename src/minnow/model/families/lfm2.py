"""LFM2 and LFM2-MoE (arXiv 2511.23404): short convolutions and attention with head norms."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from minnow.errors import UserError
from minnow.model.config import (
    ATTENTION,
    CONV,
    Attention,
    Dense,
    Experts,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.model.families import slots
from minnow.model.families.reading import attentions, common, expect, only, refuse, write_common, write_rope
from minnow.model.families.slots import Slot

_DEFAULTS = {
    "max_position_embeddings": 128_000,
    "norm_eps": 1e-5,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 7,
}


def lfm2_config(
    vocab_size: int,
    hidden_size: int,
    intermediate_size: int,
    layer_types: tuple[str, ...],
    num_heads: int,
    num_kv_heads: int,
    head_dim: int,
    conv_kernel: int = 3,
    norm_eps: float = 1e-5,
    rope_theta: float = 1e6,
    max_positions: int = 128_000,
    pad_id: int | None = 0,
    bos_id: int | None = 1,
    eos_id: int = 7,
) -> ModelConfig:
    """An LFM2 shape from the numbers that its papers give; ``layer_types`` holds ``"conv"`` and ``"full_attention"``.

    Raises:
        UserError: another mixer, or widths that an LFM2 checkpoint cannot hold.
    """
    attention = Attention(num_heads, num_kv_heads, head_dim, Rope(rope_theta))
    _square(attention, hidden_size)
    mixers: dict[str, Mixer] = {CONV: ShortConv(conv_kernel), ATTENTION: attention}
    layers = tuple(LayerConfig(_mixer(kind, mixers), Dense(intermediate_size)) for kind in layer_types)
    return ModelConfig(
        "lfm2", vocab_size, hidden_size, layers, norm_eps=norm_eps, max_positions=max_positions, pad_id=pad_id,
        bos_id=bos_id, eos_id=eos_id,
    )  # fmt: skip


def _mixer(kind: str, mixers: Mapping[str, Mixer]) -> Mixer:
    if kind not in mixers:
        raise UserError(f"unknown mixer {kind!r}; the mixers are {' and '.join(map(repr, mixers))}")
    return mixers[kind]


def _square(attention: Attention, hidden_size: int) -> None:
    width = attention.heads * attention.head_dim
    if width != hidden_size:
        raise UserError(
            f"{attention.heads} heads of {attention.head_dim} make {width}, not the hidden size {hidden_size}; an LFM2 "
            "checkpoint needs num_heads * head_dim = hidden_size"
        )


def _dense_width(config: Mapping[str, Any]) -> int:
    """The feed-forward's width: LFM2's configs give a larger one that its code takes two thirds of."""
    width = int(config.get("block_ff_dim") or config["intermediate_size"])
    if config["model_type"] == "lfm2" and config.get("block_auto_adjust_ff_dim", True):
        width = int(2 * width / 3)
        multiplier = config.get("block_ffn_dim_multiplier", 1.0)
        if multiplier is not None:  # transformers rounds only where there is a multiplier
            multiple = int(config.get("block_multiple_of", 256))
            width = multiple * -(-int(float(multiplier) * width) // multiple)
    return width


def read(config: Mapping[str, Any]) -> ModelConfig:
    """The auto-adjusted feed-forward width and older key names included."""
    family = config["model_type"]
    if config.get("conv_bias"):
        raise UserError("conv_bias is set; no published LFM2 uses it and Minnow does not compute it")
    if not config.get("tie_embedding", config.get("tie_word_embeddings", True)):
        raise UserError("the output head is not tied to the embedding; no published LFM2 does so, choose another")
    rope = config.get("rope_parameters") or {}
    if rope.get("rope_type", "default") != "default":
        raise UserError(f"rope_type {rope['rope_type']!r} is not an LFM2 form; only 'default' is computed")
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    theta = float(rope.get("rope_theta", config.get("rope_theta", 1e6)))
    mixers: dict[str, Mixer] = {
        CONV: ShortConv(int(config.get("conv_L_cache", 3))),
        ATTENTION: Attention(heads, int(config["num_key_value_heads"]), hidden // heads, Rope(theta)),
    }
    layer_types = config.get("layer_types")
    if layer_types is None:
        attention = config.get("full_attn_idxs")
        every = range(int(config["num_hidden_layers"]))
        layer_types = [ATTENTION if attention is None or i in attention else CONV for i in every]
    dense, routed = Dense(_dense_width(config)), _experts(config) if family == "lfm2_moe" else None
    plain = int(config.get("num_dense_layers", 2)) if routed else len(layer_types)
    said = {key: value for key, value in config.items() if value is not None}
    return ModelConfig(
        family,
        layers=tuple(
            LayerConfig(_mixer(kind, mixers), dense if i < plain or routed is None else routed)
            for i, kind in enumerate(layer_types)
        ),
        **common(_DEFAULTS | said | {"tie_word_embeddings": True}, "norm_eps"),
    )


def _experts(config: Mapping[str, Any]) -> Experts:
    refuse(config, scoring_func="sigmoid")
    return Experts(
        experts=int(config["num_experts"]),
        active=int(config["num_experts_per_tok"]),
        width=int(config["moe_intermediate_size"]),
        normalise=bool(config.get("norm_topk_prob", True)),
        scale=float(config.get("routed_scaling_factor", 1.0)),
        selection_bias=bool(config.get("use_expert_bias", True)),
    )


def write(config: ModelConfig) -> dict[str, Any]:
    """What transformers, llama.cpp's and MLX's readers expect (``block_dim`` is for MLX)."""
    family = config.family
    expect(config, ShortConv, Attention)
    if not config.tied:
        raise UserError(f"a {family!r} checkpoint ties its head to the embedding; use the family 'minnow'")
    found = attentions(config)
    # Without an attention layer the numbers of heads mean nothing; transformers wants them all the same.
    attention = only(found, "heads and rotation", family) if found else Attention(1, 1, config.hidden_size, Rope(1e6))
    if attention != Attention(attention.heads, attention.kv_heads, attention.head_dim, Rope(attention.rope.theta)):
        raise UserError(f"a {family!r} checkpoint has plain attention with head norms; use the family 'minnow'")
    _square(attention, config.hidden_size)
    kernels = {layer.mixer.kernel for layer in config.layers if isinstance(layer.mixer, ShortConv)} or {3}
    kernel = only(kernels, "convolution kernel", family)
    feed_forwards = [layer.feed_forward for layer in config.layers]
    width = only((f.width for f in feed_forwards if isinstance(f, Dense)), "feed-forward width", family)
    architecture = "Lfm2ForCausalLM" if family == "lfm2" else "Lfm2MoeForCausalLM"
    written = write_common(config, architecture, "norm_eps") | {
        "block_dim": config.hidden_size,
        "conv_dim": config.hidden_size,
        "conv_dim_out": config.hidden_size,
        "intermediate_size": width,
        "block_ff_dim": width,
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": 256,
        "block_ffn_dim_multiplier": 1.0,
        "num_attention_heads": attention.heads,
        "num_heads": attention.heads,
        "num_key_value_heads": attention.kv_heads,
        "layer_types": list(config.layer_types),
        "full_attn_idxs": [i for i, kind in enumerate(config.layer_types) if kind == ATTENTION],
        "conv_L_cache": kernel,
        "conv_bias": False,
        "block_norm_eps": config.norm_eps,
        "rope_theta": attention.rope.theta,
        "rope_parameters": write_rope(attention.rope),
        "tie_embedding": True,
    }
    return written if family == "lfm2" else written | _write_experts(config)


def _write_experts(config: ModelConfig) -> dict[str, Any]:
    feed_forwards = [layer.feed_forward for layer in config.layers]
    routed = only((f for f in feed_forwards if isinstance(f, Experts)), "experts", config.family)
    plain = next(i for i, f in enumerate(feed_forwards) if isinstance(f, Experts))
    if any(isinstance(f, Dense) for f in feed_forwards[plain:]):
        raise UserError("an 'lfm2_moe' checkpoint has its dense layers first; use the family 'minnow'")
    return {
        "num_dense_layers": plain,
        "num_experts": routed.experts,
        "num_experts_per_tok": routed.active,
        "moe_intermediate_size": routed.width,
        "norm_topk_prob": routed.normalise,
        "routed_scaling_factor": routed.scale,
        "use_expert_bias": routed.selection_bias,
    }


def tensors(config: ModelConfig, out: str = "out_proj", norms: str = "layernorm") -> Iterator[Slot]:
    """``out`` and ``norms`` are in the names of attention's output projection and of its heads' norms."""
    yield from slots.ends(config, "model.embedding_norm.weight")
    for i, layer in enumerate(config.layers):
        ours, theirs = f"layers.{i}.", f"model.layers.{i}."
        yield slots.same(ours + "mixer_norm", theirs + "operator_norm.weight")
        yield slots.same(ours + "feed_forward_norm", theirs + "ffn_norm.weight")
        if config.sandwich:  # LFM3's
            yield slots.same(ours + "mixer_out_norm", theirs + "post_operator_norm.weight")
            yield slots.same(ours + "feed_forward_out_norm", theirs + "post_ffn_norm.weight")
        if isinstance(layer.feed_forward, Dense):
            names = ("w1", "w3", "w2")
            yield from slots.dense(ours + "feed_forward.", theirs + "feed_forward.", layer.feed_forward, names)
        else:
            hidden = config.hidden_size
            yield from slots.experts(ours + "feed_forward.", theirs + "feed_forward.", layer.feed_forward, hidden)
        if isinstance(layer.mixer, Attention):
            yield from slots.attention(ours + "mixer.", theirs + "self_attn.", layer.mixer, out, norms)
        else:
            mixer, conv = ours + "mixer.", theirs + "conv."
            yield slots.same(mixer + "in_proj.weight", conv + "in_proj.weight")
            yield slots.taps(mixer + "conv", conv + "conv.weight")
            yield slots.same(mixer + "out_proj.weight", conv + "out_proj.weight")
