"""How llama.cpp names, stores and computes each family's network, and what it does not compute."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.config import Attention, Dense, Experts, GatedDelta, ModelConfig, Rope, ShortConv
from minnow.model.families import FAMILIES
from minnow.model.foreign import is_foreign
from minnow.model.rotary import frequencies

if TYPE_CHECKING:
    from gguf import GGUFWriter

Edit = Callable[[Tensor], Tensor]
"""What a whole tensor of the checkpoint becomes in the file."""

ARCHITECTURES = {
    "lfm2": "LFM2",
    "lfm2_moe": "LFM2MOE",
    "llama": "LLAMA",
    "qwen3": "QWEN3",
    "gemma3_text": "GEMMA3",
    "qwen3_5_text": "QWEN35",
}
"""Family to architecture, as the gguf package's ``MODEL_ARCH`` names it."""

KEPT_F32 = ("shortconv.conv.weight", "ssm_conv1d.weight", "ffn_gate_inp.weight")
"""Matrices that llama.cpp wants in F32: convolution taps and routers."""

_SCALED = {"llama": ("linear", "llama3"), "qwen3": ("linear",), "gemma3_text": ("linear",)}
_GEMMA_27B = 62  # layers; llama.cpp tells by them that scores are scaled by the residual stream's share of a head


@dataclass(frozen=True)
class Named:
    """One of the file's tensors: the checkpoint's tensors that are stacked in it, and how each is edited."""

    name: str
    sources: tuple[str, ...]
    edit: Edit | None = None


def read_exportable(settings: Mapping[str, Any], where: object) -> ModelConfig:
    """The shape in a ``config.json``, if llama.cpp computes it.

    Raises:
        UserError: another family, or a form of it that llama.cpp does not compute.
    """
    kind = settings.get("model_type") if isinstance(settings, Mapping) else None
    config = None if isinstance(settings, Mapping) and is_foreign(settings) else ModelConfig.from_hf(settings)
    if config is None or config.family not in ARCHITECTURES:
        hint = (
            "the bundled llama.cpp does not read it yet; train one of those, or distil into one"
            if kind in ("lfm3", "minnow")
            else "convert others with llama.cpp's own convert_hf_to_gguf.py"
        )
        raise UserError(
            f"{where} is a {kind!r} model and 'minnow export' writes {', '.join(map(repr, ARCHITECTURES))}; {hint}"
        )
    for problem in _problems(config):
        raise UserError(f"{where}: {problem}, which llama.cpp does not compute for {config.family!r}; change the model")
    return config


def _problems(config: ModelConfig) -> Iterator[str]:
    attentions = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    if not attentions:
        yield "it has no attention layer ('full_attention' in layer_types)"
    if config.family in ("lfm2", "lfm2_moe") and not any(isinstance(layer.mixer, ShortConv) for layer in config.layers):
        yield "it has no convolution layer (with attention alone it is a 'qwen3' model)"
    for attention in attentions:
        if attention.window is not None and config.family != "gemma3_text":
            yield "it has sliding windows"
        if attention.softcap is not None:
            yield "its attention scores are soft-capped"
        if attention.window is not None and attention.rope.scaling is not None:
            yield "the rotation of its windows is scaled"
        if attention.rope.scaling is not None and attention.rope.scaling.kind not in _SCALED.get(config.family, ()):
            yield f"its rotation is scaled ({attention.rope.scaling.kind})"
    for layer in config.layers:
        experts, delta = layer.feed_forward, layer.mixer
        if isinstance(experts, Experts) and not experts.normalise:
            yield "the weights of its experts are not normalised"
        if isinstance(experts, Experts) and not experts.selection_bias:
            yield "its experts have no selection bias"
        if isinstance(delta, GatedDelta) and delta.key_dim != delta.value_dim:
            yield f"its delta nets' keys are {delta.key_dim} wide and their values {delta.value_dim}"


def add_keys(writer: GGUFWriter, config: ModelConfig) -> None:
    """Write a network's hyperparameters."""
    from gguf import ExpertGatingFuncType, RopeScalingType

    mixers = [layer.mixer for layer in config.layers]
    attention = _attention(config)
    rope = attention.rope
    feed_forwards = [layer.feed_forward for layer in config.layers]
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(next((f.width for f in feed_forwards if isinstance(f, Dense)), 0))
    writer.add_head_count(attention.heads)
    # A zero is how llama.cpp tells a convolution layer from an attention layer.
    shares = [mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers]
    writer.add_head_count_kv(shares if any(isinstance(mixer, ShortConv) for mixer in mixers) else attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.rotary_dim)
    writer.add_rope_freq_base(rope.theta)
    if rope.scaling is not None and rope.scaling.kind == "linear":
        writer.add_rope_scaling_type(RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope.scaling.factor)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    if config.logit_softcap is not None:
        writer.add_final_logit_softcapping(config.logit_softcap)
    near = next((mixer for mixer in mixers if isinstance(mixer, Attention) and mixer.window is not None), None)
    if near is not None and near.window is not None:
        writer.add_sliding_window(near.window)
        writer.add_sliding_window_pattern([mixer == near for mixer in mixers])
        writer.add_rope_freq_base_swa(near.rope.theta)
    if config.family.startswith("lfm2"):
        writer.add_shortconv_l_cache(next((mixer.kernel for mixer in mixers if isinstance(mixer, ShortConv)), 3))
    routed = [f for f in feed_forwards if isinstance(f, Experts)]
    if routed:
        writer.add_expert_count(routed[0].experts)
        writer.add_expert_used_count(routed[0].active)
        writer.add_expert_feed_forward_length(routed[0].width)
        writer.add_leading_dense_block_count(len(feed_forwards) - len(routed))
        writer.add_expert_gating_func(ExpertGatingFuncType.SIGMOID)
    deltas = [mixer for mixer in mixers if isinstance(mixer, GatedDelta)]
    if config.family == "qwen3_5_text":
        delta = deltas[0] if deltas else GatedDelta(1, 1, attention.head_dim, attention.head_dim)
        writer.add_ssm_conv_kernel(delta.kernel)
        writer.add_ssm_state_size(delta.key_dim)
        writer.add_ssm_group_count(delta.key_heads)
        writer.add_ssm_time_step_rank(delta.value_heads)
        writer.add_ssm_inner_size(delta.value_heads * delta.value_dim)
        writer.add_array("qwen35.attention.recurrent_layers", [isinstance(mixer, GatedDelta) for mixer in mixers])
        # Of positions in time, height and width: all are the same in a text.
        writer.add_rope_dimension_sections([11, 11, 10, 0])


def _attention(config: ModelConfig) -> Attention:
    """The attention layer that speaks for all: one without a window where there is one."""
    found = [layer.mixer for layer in config.layers if isinstance(layer.mixer, Attention)]
    return next((each for each in found if each.window is None), replace(found[0], rope=Rope(1e6)))


def named_tensors(config: ModelConfig, theirs: list[str]) -> list[Named]:
    """The file's tensors, made of those that the family's checkpoints hold.

    Args:
        theirs: the checkpoint's names, in the family's order.
    """
    from gguf import MODEL_ARCH, get_tensor_name_map

    names = get_tensor_name_map(MODEL_ARCH[ARCHITECTURES[config.family]], config.num_layers)
    stacks: dict[str, list[str]] = {}
    for source in theirs:
        before, _, expert = source.partition(".experts.")
        # Experts that are stacked go by Mixtral's names.
        plain = f"{before.removeprefix('model.')}.experts.{expert.partition('.')[2]}" if expert else source
        plain = plain.replace(".dt_bias", ".dt_proj.bias").replace(".expert_bias", ".expert_bias.bias")
        name = names.get_name(plain, try_suffixes=(".weight", ".bias"))
        assert name is not None, f"the gguf package has no name for {plain}"
        stacks.setdefault(name, []).append(source)
    return [Named(name, tuple(sources), _edit(config, sources[0])) for name, sources in stacks.items()]


def checkpoint_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """The shape of every tensor of the family's checkpoints, by its name there and in the family's order."""
    with torch.device("meta"):
        ours = Backbone(config).state_dict()
    return {
        name: tuple(part.shape)
        for slot in FAMILIES[config.family].tensors(config)
        for name, part in zip(slot.theirs, slot.split(ours[slot.ours]), strict=True)
    }


def file_tensors(config: ModelConfig) -> Iterator[tuple[Named, tuple[int, ...]]]:
    """The file's tensors that come from a checkpoint, and their shapes."""
    shapes = checkpoint_shapes(config)
    for named in named_tensors(config, list(shapes)):
        shape: Sequence[int] = shapes[named.sources[0]]
        if named.edit is not None:
            shape = named.edit(torch.empty(shape, device="meta")).shape
        yield named, (*shape,) if len(named.sources) == 1 else (len(named.sources), *shape)


def computed_tensors(config: ModelConfig) -> dict[str, Tensor]:
    """Tensors of the file that no checkpoint holds: the divisors of Llama 3's scaled rotation."""
    attention = _attention(config)
    scaling = attention.rope.scaling
    if scaling is None or scaling.kind != "llama3":
        return {}
    plain = replace(attention, rope=replace(attention.rope, scaling=None))
    return {"rope_freqs.weight": frequencies(plain) / frequencies(attention)}


def _edit(config: ModelConfig, source: str) -> Edit | None:
    """What llama.cpp's own form of a family asks of one of its tensors."""
    layer = config.layers[int(source.split(".")[2])] if source.startswith("model.layers.") else None
    mixer = layer.mixer if layer else None
    if source.endswith((".conv.conv.weight", ".conv1d.weight")):
        taps = _tiled(mixer, source) if isinstance(mixer, GatedDelta) else None
        return lambda tensor: taps(tensor[:, 0]) if taps else tensor[:, 0]
    if isinstance(mixer, GatedDelta) and ".linear_attn." in source and not source.endswith(".linear_attn.norm.weight"):
        tiled = _tiled(mixer, source)
        return (lambda tensor: -tiled(tensor).exp()) if source.endswith(".A_log") else tiled
    if config.family == "llama" and source.endswith((".q_proj.weight", ".k_proj.weight")):
        assert isinstance(mixer, Attention)
        return _pairs(mixer.head_dim)
    if layer and isinstance(layer.feed_forward, Experts) and source.endswith(".w2.weight"):
        scale = layer.feed_forward.scale  # for which lfm2moe has no key
        return None if scale == 1.0 else lambda tensor: tensor.float() * scale
    if config.norm_offset and source.endswith("norm.weight") and not source.endswith(".linear_attn.norm.weight"):
        share = _score_scale(config, mixer) if source.endswith(".q_norm.weight") else 1.0
        return lambda tensor: (tensor.float() + 1) * share
    return None


def _pairs(head_dim: int) -> Edit:
    """Rows of each head so that those that turn together are neighbours: Meta's order, from transformers'."""
    return lambda tensor: tensor.unflatten(0, (-1, 2, head_dim // 2)).transpose(1, 2).flatten(0, 2)


def _score_scale(config: ModelConfig, mixer: object) -> float:
    """What query norms are to be multiplied by, because llama.cpp scales a Gemma's scores by its own rule."""
    assert isinstance(mixer, Attention)
    if config.family != "gemma3_text":
        return 1.0
    ours = mixer.head_dim**-0.5 if mixer.scale is None else mixer.scale
    return ours * (config.hidden_size // mixer.heads if config.num_layers == _GEMMA_27B else mixer.head_dim) ** 0.5


def _tiled(delta: GatedDelta, source: str) -> Edit:
    """Value heads in llama.cpp's order: the first of every key head, then the second of every one."""
    dim = 1 if source.endswith((".in_proj_a.weight", ".in_proj_b.weight", ".A_log", ".dt_bias")) else delta.value_dim
    axis = 1 if source.endswith(".out_proj.weight") else 0
    first = 2 * delta.key_heads * delta.key_dim if source.endswith((".in_proj_qkv.weight", ".conv1d.weight")) else 0

    def edit(tensor: Tensor) -> Tensor:
        heads = tensor.narrow(axis, first, delta.value_heads * dim)
        grouped = heads.unflatten(axis, (delta.key_heads, delta.value_heads // delta.key_heads, dim))
        tiled = grouped.transpose(axis, axis + 1).flatten(axis, axis + 2)
        return torch.cat([tensor.narrow(axis, 0, first), tiled], dim=axis)

    return edit
