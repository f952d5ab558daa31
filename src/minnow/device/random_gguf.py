"""GGUF files of any shape with random weights: speed and memory do not depend on what the weights are.

Written straight in the blocks of their type, so that a file of 350M parameters takes a second and no training.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from minnow.errors import UserError
from minnow.files import whole_file
from minnow.model.config import Attention, Dense, GatedDelta, ModelConfig, ShortConv
from minnow.model.footprint import tensor_type
from minnow.model.inventory import Tensor, conv_channels

if TYPE_CHECKING:
    from gguf import GGUFWriter

TYPES = ("F16", "BF16", "Q8_0", "Q4_0")
ARCHITECTURES = {
    "lfm2": "lfm2",
    "llama": "llama",
    "qwen3": "qwen3",
    "gemma3_text": "gemma3",
    "qwen3_5_text": "qwen35",
}
"""What llama.cpp calls each family that it runs."""

# Bytes of a block of 32, bytes of its scale, and the standard deviation of its evenly drawn numbers.
_BLOCKS = {"Q8_0": (34, 73.9), "Q4_0": (18, 4.61)}


@dataclass(frozen=True)
class _Named:
    name: str
    shape: tuple[int, ...]
    kind: str


def runs_in_llama_cpp(config: ModelConfig) -> bool:
    """Whether a file of this shape can be written here and read by llama.cpp."""
    mixers = [layer.mixer for layer in config.layers]
    return (
        config.family in ARCHITECTURES
        and any(isinstance(mixer, Attention) for mixer in mixers)
        and all(isinstance(layer.feed_forward, Dense) for layer in config.layers)
    )


def write_random_gguf(config: ModelConfig, file: Path, kind: str = "Q4_0", seed: int = 0) -> int:
    """Write ``config`` with random weights to ``file``, which appears whole or not at all; its size in bytes.

    Args:
        kind: one of :data:`TYPES`; each tensor's own type is that of :func:`minnow.model.footprint.tensor_type`.

    Raises:
        UserError: the ``gguf`` package is missing, an unknown type, or a shape that llama.cpp does not run.
    """
    if importlib.util.find_spec("gguf") is None:
        raise UserError('the "gguf" package is not installed; run: pip install "minnow[export]"')
    if kind not in TYPES:
        raise UserError(f"random weights cannot be written as {kind!r}; choose one of {', '.join(TYPES)}")
    if not runs_in_llama_cpp(config):
        raise UserError(
            f"llama.cpp runs no {config.family!r} model of this shape (families {', '.join(ARCHITECTURES)}, at least "
            "one attention layer, no experts); profile it with --engine torch"
        )
    from gguf import GGMLQuantizationType, GGUFWriter

    random = np.random.default_rng(seed)
    with whole_file(file) as temporary:
        writer = GGUFWriter(temporary, ARCHITECTURES[config.family])
        _add_shape(writer, config, kind)
        _add_vocabulary(writer, config)
        for one in _tensors(config, kind):
            writer.add_tensor(one.name, _values(random, one), raw_dtype=GGMLQuantizationType[one.kind])
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return temporary.stat().st_size


def _add_shape(writer: GGUFWriter, config: ModelConfig, kind: str) -> None:
    from gguf import LlamaFileType

    mixers = [layer.mixer for layer in config.layers]
    attention = next(mixer for mixer in mixers if isinstance(mixer, Attention))
    writer.add_name("random weights")
    writer.add_file_type(LlamaFileType[f"MOSTLY_{kind}"])
    writer.add_quantization_version(2)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.layers[0].feed_forward.width)
    writer.add_head_count(attention.heads)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_rope_freq_base(attention.rope.theta)
    writer.add_vocab_size(config.vocab_size)
    if config.family == "lfm2":
        # A zero is how llama.cpp tells a convolution layer from an attention layer.
        writer.add_head_count_kv([mixer.kv_heads if isinstance(mixer, Attention) else 0 for mixer in mixers])
        writer.add_shortconv_l_cache(next((mixer.kernel for mixer in mixers if isinstance(mixer, ShortConv)), 3))
        return
    writer.add_head_count_kv(attention.kv_heads)
    writer.add_key_length(attention.head_dim)
    writer.add_value_length(attention.head_dim)
    writer.add_rope_dimension_count(attention.rotary_dim)
    if config.family == "gemma3_text":
        windows = {mixer.window for mixer in mixers if isinstance(mixer, Attention) and mixer.window is not None}
        writer.add_sliding_window(max(windows, default=config.max_positions))
    if config.family == "qwen3_5_text":
        delta = next(mixer for mixer in mixers if isinstance(mixer, GatedDelta))
        writer.add_ssm_conv_kernel(delta.kernel)
        writer.add_ssm_state_size(delta.key_dim)
        writer.add_ssm_group_count(delta.key_heads)
        writer.add_ssm_time_step_rank(delta.value_heads)
        writer.add_ssm_inner_size(delta.value_heads * delta.value_dim)
        first = next(i for i, mixer in enumerate(mixers) if isinstance(mixer, Attention))
        writer.add_full_attention_interval(first + 1)
        quarter = attention.rotary_dim // 2
        writer.add_rope_dimension_sections([quarter - 2 * (quarter // 3), quarter // 3, quarter // 3, 0])


def _add_vocabulary(writer: GGUFWriter, config: ModelConfig) -> None:
    """Made-up tokens and as many merges: llama.cpp's tables take the memory of a real vocabulary's."""
    from gguf import TokenType

    tokens = [f"t{i}" for i in range(config.vocab_size)]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("llama-bpe")
    writer.add_token_list(tokens)
    writer.add_token_types([int(TokenType.NORMAL)] * len(tokens))
    writer.add_token_merges([f"t{i} t{i + 1}" for i in range(len(tokens) - 1)])
    writer.add_eos_token_id(config.eos_id if config.eos_id < len(tokens) else 0)
    writer.add_bos_token_id(0)


def _tensors(config: ModelConfig, kind: str) -> Iterator[_Named]:
    """Every tensor under llama.cpp's name, ``[rows, columns]``."""
    d = config.hidden_size

    def matrix(name: str, rows: int, columns: int, part: str = "mlp", role: str = "matrix") -> _Named:
        stored = tensor_type(Tensor(part, rows, columns, role), kind)  # type: ignore[arg-type]
        return _Named(f"{name}.weight", (rows, columns), stored)

    def vector(name: str, *shape: int) -> _Named:
        return _Named(name, shape, "F32")

    yield matrix("token_embd", config.vocab_size, d, "embedding", "tied" if config.tied else "table")
    if not config.tied:
        yield matrix("output", config.vocab_size, d, "head")
    yield vector("token_embd_norm.weight" if config.family == "lfm2" else "output_norm.weight", d)
    for i, layer in enumerate(config.layers):
        block, mixer, width = f"blk.{i}.", layer.mixer, layer.feed_forward.width
        yield vector(f"{block}attn_norm.weight", d)
        if config.family == "qwen3_5_text":
            yield vector(f"{block}post_attention_norm.weight", d)
        else:
            yield vector(f"{block}ffn_norm.weight", d)
        if config.sandwich:
            yield vector(f"{block}post_attention_norm.weight", d)
            yield vector(f"{block}post_ffw_norm.weight", d)
        yield matrix(f"{block}ffn_gate", width, d)
        yield matrix(f"{block}ffn_up", width, d)
        yield matrix(f"{block}ffn_down", d, width)
        if isinstance(mixer, Attention):
            query, key = mixer.heads * mixer.head_dim, mixer.kv_heads * mixer.head_dim
            yield matrix(f"{block}attn_q", query * (2 if mixer.output_gate == "element" else 1), d)
            yield matrix(f"{block}attn_k", key, d)
            yield matrix(f"{block}attn_v", key, d)
            yield matrix(f"{block}attn_output", d, query)
            if mixer.qk_norm:
                yield vector(f"{block}attn_q_norm.weight", mixer.head_dim)
                yield vector(f"{block}attn_k_norm.weight", mixer.head_dim)
        elif isinstance(mixer, ShortConv):
            yield matrix(f"{block}shortconv.in_proj", 3 * d, d)
            yield matrix(f"{block}shortconv.out_proj", d, d)
            yield vector(f"{block}shortconv.conv.weight", d, mixer.kernel)
        elif isinstance(mixer, GatedDelta):
            value = mixer.value_heads * mixer.value_dim
            yield matrix(f"{block}attn_qkv", conv_channels(mixer), d)
            yield matrix(f"{block}attn_gate", value, d)
            yield matrix(f"{block}ssm_beta", mixer.value_heads, d)
            yield matrix(f"{block}ssm_alpha", mixer.value_heads, d)
            yield matrix(f"{block}ssm_out", d, value)
            yield vector(f"{block}ssm_conv1d.weight", conv_channels(mixer), mixer.kernel)
            yield vector(f"{block}ssm_dt.bias", mixer.value_heads)
            yield vector(f"{block}ssm_a", mixer.value_heads)
            yield vector(f"{block}ssm_norm.weight", mixer.value_dim)


def _values(random: np.random.Generator, tensor: _Named) -> np.ndarray:
    """Weights at ``1/sqrt(fan in)``; vectors of ones, the decay rates of a delta net of minus ones."""
    shape, kind = tensor.shape, tensor.kind
    if len(shape) == 1:
        return np.full(shape, -1.0 if tensor.name.endswith("ssm_a") else 1.0, np.float32)
    std = shape[-1] ** -0.5
    if kind in _BLOCKS:
        size, spread = _BLOCKS[kind]
        blocks = np.frombuffer(random.bytes(shape[0] * shape[1] // 32 * size), np.uint8).reshape(-1, size).copy()
        blocks[:, :2] = np.frombuffer(np.float16(std / spread).tobytes(), np.uint8)
        return blocks.reshape(shape[0], -1)
    drawn = random.standard_normal(shape, np.float32) * np.float32(std)
    if kind == "F16":
        return drawn.astype(np.float16)
    if kind == "BF16":
        return (drawn.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    return drawn
