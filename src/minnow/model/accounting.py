"""Where the parameters sit, what a token costs, what a context holds: all from the configuration, no weights built."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minnow.model.config import Attention, GatedDelta, GatedLinear, Mixer, ModelConfig
from minnow.model.footprint import WEIGHT_TYPES, decode_bytes, file_bytes, peak_memory, state_bytes, state_growth
from minnow.model.inventory import PARTS, recurrent_values, tensors


def parameter_parts(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, every name of :data:`minnow.model.inventory.PARTS`; a tied embedding is counted once."""
    parts = dict.fromkeys(PARTS, 0)
    for tensor in tensors(config):
        parts[tensor.part] += tensor.parameters
    return parts


def active_parts(config: ModelConfig) -> dict[str, int]:
    """As :func:`parameter_parts`, without the experts that a token is not sent to."""
    parts = dict.fromkeys(PARTS, 0)
    for tensor in tensors(config):
        parts[tensor.part] += tensor.active_parameters
    return parts


def embedding_share(config: ModelConfig, extras: int = 0) -> dict[str, float | None]:
    """The embedding's share by what it is divided by: the same table gives very different percentages.

    Args:
        extras: parameters that the published file holds beside the language model (a vision tower).

    Returns:
        ``total`` (the language model; a tied table counted once), ``with_head`` (embedding and head of the total; a
        tied table counted twice), ``active`` (of what a token uses), ``non_embedding`` (of the rest, so it may pass
        1), ``checkpoint`` (of the whole file; None without extras).
    """
    parts = parameter_parts(config)
    embedding, total = parts["embedding"], sum(parts.values())
    vocabulary = embedding + (embedding if config.tied else parts["head"])
    return {
        "total": embedding / total,
        "with_head": vocabulary / (total + (embedding if config.tied else 0)),
        "active": embedding / sum(active_parts(config).values()),
        "non_embedding": embedding / (total - embedding - parts["head"]),
        "checkpoint": embedding / (total + extras) if extras else None,
    }


def _weight_flops(config: ModelConfig) -> tuple[int, int]:
    """Two for every weight that multiplies a token's numbers: those of the layers, those of the output head."""
    layers = head = 0
    for tensor in tensors(config):
        if tensor.role == "tied" or tensor.part == "head":
            head += 2 * tensor.parameters
        elif tensor.role in ("matrix", "taps"):
            layers += 2 * tensor.active_parameters
    return layers, head


def _memory_flops(config: ModelConfig) -> int:
    """Of memory matrices, in the recurrent form: fade, recall for the correction (delta nets), update, read."""
    return sum(recurrent_flops(layer.mixer) for layer in config.layers)


def recurrent_flops(mixer: Mixer) -> int:
    """Forward FLOPs per token of a mixer's memory matrix; 0 where it has none."""
    return {GatedDelta: 7, GatedLinear: 5}.get(type(mixer), 0) * recurrent_values(mixer)


def mean_seen(mixer: Attention, row: float) -> float:
    """Positions that a query sees on average in a row of so many."""
    window = min(mixer.window or row, row)
    return window - window**2 / (2 * row) if row else 0


def _score_flops(config: ModelConfig, last: int, mean: bool) -> float:
    """Of attention's scores and of the values they weigh, at position ``last`` or on the mean of all up to it."""
    flops = 0.0
    for layer in config.layers:
        if isinstance(layer.mixer, Attention):
            window = min(layer.mixer.window or last, last)
            seen = (window * (window + 1) / 2 + (last - window) * window) / last if mean else window
            flops += 4 * layer.mixer.heads * layer.mixer.head_dim * seen
    return flops


def prefill_flops(config: ModelConfig, context: int) -> float:
    """Forward FLOPs per token of a prompt of ``context`` tokens; the head reads the last one only."""
    layers, head = _weight_flops(config)
    return layers + head / context + _memory_flops(config) + _score_flops(config, context, mean=True)


def decode_flops(config: ModelConfig, context: int) -> float:
    """Forward FLOPs of the token at position ``context``."""
    layers, head = _weight_flops(config)
    return layers + head + _memory_flops(config) + _score_flops(config, context, mean=False)


def flops_per_token(config: ModelConfig, context: float) -> float:
    """Training FLOPs per token, forward and backward: three times a forward pass with the head at every token.

    Args:
        context: positions a query sees on average where it sees all (half the row for plain causal attention).
    """
    layers, head = _weight_flops(config)
    forward = float(layers + head + _memory_flops(config))
    for layer in config.layers:
        if isinstance(layer.mixer, Attention):
            forward += 4 * layer.mixer.heads * layer.mixer.head_dim * mean_seen(layer.mixer, 2 * context)
    return 3.0 * forward


def accounting(config: ModelConfig, contexts: Sequence[int] = (4096, 32_768), extras: int = 0) -> dict[str, Any]:
    """All of it as one document.

    Args:
        contexts: lengths in tokens; what hangs on one is given by length, as text.
        extras: as for :func:`embedding_share`.

    Returns:
        ``total``, ``active``, ``parts``, ``active_parts``, ``shares`` (of the total), ``non_embedding``,
        ``embedding_share``, ``checkpoint_total`` (None without extras), ``flops_per_token`` (``prefill``, ``decode``
        and ``training`` by length), ``weight_bytes`` by GGUF type, ``state_bytes`` by length, ``state_growth``, and by
        type and length ``decode_bytes`` and ``peak_memory`` (x86, with its parts).
    """
    parts, used = parameter_parts(config), active_parts(config)
    total = sum(parts.values())
    return {
        "total": total,
        "active": sum(used.values()),
        "parts": parts,
        "active_parts": used,
        "shares": {name: count / total for name, count in parts.items()},
        "non_embedding": total - parts["embedding"] - parts["head"],
        "embedding_share": embedding_share(config, extras),
        "checkpoint_total": total + extras if extras else None,
        "flops_per_token": {
            "prefill": {str(context): prefill_flops(config, context) for context in contexts},
            "decode": {str(context): decode_flops(config, context) for context in contexts},
            "training": {str(context): flops_per_token(config, context / 2) for context in contexts},
        },
        "weight_bytes": {kind: file_bytes(config, kind) for kind in WEIGHT_TYPES},
        "state_bytes": {
            str(context): (state := state_bytes(config, context)) | {"total": sum(state.values())}
            for context in contexts
        },
        "state_growth": state_growth(config),
        "decode_bytes": {
            kind: {str(context): decode_bytes(config, kind, context) for context in contexts} for kind in WEIGHT_TYPES
        },
        "peak_memory": {
            kind: {str(context): peak_memory(config, kind, context) for context in contexts} for kind in WEIGHT_TYPES
        },
    }
