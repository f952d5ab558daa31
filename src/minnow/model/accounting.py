"""Where the parameters sit, what a token costs, what a context holds."""

from __future__ import annotations

from typing import Any

from minnow.model.config import ATTENTION, CONV, ModelConfig


def parameter_parts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part; the tied embedding is counted once."""
    d, kernel = config.hidden_size, config.conv_kernel
    convs = config.layer_types.count(CONV)
    attentions = config.layer_types.count(ATTENTION)
    q_width, kv_width = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    return {
        "embedding": config.vocab_size * d,
        "attention": attentions * (2 * d * q_width + 2 * d * kv_width + 2 * config.head_dim),
        "conv": convs * (4 * d * d + d * kernel),
        "mlp": config.num_layers * 3 * d * config.intermediate_size,
        "norms": d + config.num_layers * 2 * d,
    }


def flops_per_token(config: ModelConfig, context: int) -> float:
    """Training FLOPs per token, forward and backward: 6 per weight that multiplies, plus attention scores.

    Args:
        context: positions a query sees on average (half the row for plain causal attention).
    """
    parts = parameter_parts(config)
    weights = sum(parts.values()) - parts["norms"]
    scores = config.layer_types.count(ATTENTION) * 2 * config.num_heads * config.head_dim * context
    return 6.0 * (weights + scores)


def state_bytes(config: ModelConfig, context: int, bytes_per_value: int = 2) -> dict[str, int]:
    """Decode state of one sequence in bytes: fixed for convolutions, growing with ``context`` for attention."""
    conv = config.layer_types.count(CONV) * config.hidden_size * (config.conv_kernel - 1)
    kv = config.layer_types.count(ATTENTION) * 2 * config.num_kv_heads * config.head_dim * context
    return {"conv": conv * bytes_per_value, "kv": kv * bytes_per_value}


def file_bytes(config: ModelConfig, kind: str) -> int:
    """Bytes of the weights in a GGUF file of type ``kind``: "F16", "Q8_0" or "Q4_0", as Minnow exports them.

    Vectors and convolution taps stay F32, matrices whose rows are no multiple of the block of 32 F16, and Q4_0 keeps
    the tied embedding in Q8_0.
    """
    d, parts = config.hidden_size, parameter_parts(config)
    convs, attentions = config.layer_types.count(CONV), config.layer_types.count(ATTENTION)
    small = parts["norms"] + convs * d * config.conv_kernel + attentions * 2 * config.head_dim
    down = config.num_layers * d * config.intermediate_size  # the only matrices whose rows are not hidden_size long
    rest = sum(parts.values()) - small - down - parts["embedding"]

    def size(count: int, row: int, kind: str) -> int:
        bytes_of_block = {"F16": 64, "Q8_0": 34, "Q4_0": 18}["F16" if row % 32 else kind]
        return count * bytes_of_block // 32

    embedding = size(parts["embedding"], d, "Q8_0" if kind == "Q4_0" else kind)
    return 4 * small + embedding + size(rest, d, kind) + size(down, config.intermediate_size, kind)


def accounting(config: ModelConfig, contexts: tuple[int, ...] = (4096, 32_768)) -> dict[str, Any]:
    """All of it as one document: parts, shares, FLOPs per token, weight and state bytes."""
    parts = parameter_parts(config)
    total = sum(parts.values())
    return {
        "total": total,
        "parts": parts,
        "shares": {name: count / total for name, count in parts.items()},
        "non_embedding": total - parts["embedding"],
        "flops_per_token": {str(context): flops_per_token(config, context // 2) for context in contexts},
        "weight_bytes": {kind: file_bytes(config, kind) for kind in ("F16", "Q8_0", "Q4_0")},
        "state_bytes": {str(context): state_bytes(config, context) for context in contexts},
    }
