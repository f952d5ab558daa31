"""Bytes: weights in a GGUF file, decode state, what a token reads, and the most that llama.cpp holds at once.

The peak is a model of llama.cpp on a CPU, weights memory-mapped. It was fitted on random LFM2 shapes (build 11549, AVX2
wheel; 350M and 63M, 16 Ki to 256 Ki tokens of vocabulary, contexts of 512 to 16,384) and is within 3% of all ten
that were measured. What the library itself takes depends on how the kernel maps it: 8 MB there, 21 MB on another
machine, so `minnow design` measures it. For ARM the rules are llama.cpp's own (``ggml/src/ggml-cpu/repack.cpp``); nothing
was measured there.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from minnow.model.config import Attention, Experts, GatedDelta, LayerConfig, ModelConfig, ShortConv
from minnow.model.inventory import Tensor, conv_channels, kv_values, recurrent_values, tail_values, tensors

WEIGHT_TYPES = ("F16", "BF16", "Q8_0", "Q4_0")
Repack = Literal["x86", "arm", "none"]
BATCH = 512
"""Tokens of a prompt that llama.cpp computes at once (``n_ubatch``)."""

_BLOCK = 32
_BYTES_PER_BLOCK = {"F32": 128, "F16": 64, "BF16": 64, "Q8_0": 34, "Q4_0": 18}
# Which types llama.cpp rearranges as it loads them, and by how many rows at a time: AVX2 on one side, NEON with
# dot products on the other. The mapped file stays resident, so what is rearranged is held twice.
_REPACKED = {"x86": {"Q4_0": 8}, "arm": {"Q4_0": 4, "Q8_0": 4}, "none": {}}
_VOCABULARY_ENTRY = 420  # bytes that a token and its merge take in llama.cpp's tables
_RUNTIME = 8_000_000  # bytes of llama.cpp's own code and small buffers


def tensor_type(tensor: Tensor, kind: str) -> str:
    """The GGUF type of a tensor in a file of type ``kind``, as Minnow exports it.

    Vectors, convolution taps and routers stay F32, matrices whose rows are no multiple of the block of 32 F16, and a
    Q4_0 file keeps the output head (the tied embedding) in Q8_0.
    """
    if tensor.role in ("vector", "taps") or tensor.part == "router":
        return "F32"
    if tensor.columns % _BLOCK and kind not in ("F16", "F32", "BF16"):
        return "F16"
    head = tensor.role == "tied" or tensor.part == "head"
    return "Q8_0" if head and kind == "Q4_0" else kind


def _bytes(numbers: int, kind: str) -> int:
    return numbers * _BYTES_PER_BLOCK[kind] // _BLOCK


def file_bytes(config: ModelConfig, kind: str) -> int:
    """Bytes of the weights in a GGUF file of type ``kind``; vocabulary and metadata come on top."""
    return sum(_bytes(tensor.parameters, tensor_type(tensor, kind)) for tensor in tensors(config))


def repacked_bytes(config: ModelConfig, kind: str, repack: Repack) -> int:
    """Bytes of the weights that llama.cpp holds a second time, rearranged for the processor."""
    rows = _REPACKED[repack]
    return sum(
        _bytes(tensor.parameters, stored)
        for tensor in tensors(config)
        if tensor.role in ("matrix", "tied")
        and (stored := tensor_type(tensor, kind)) in rows
        and tensor.rows % rows[stored] == 0
    )


def state_bytes(config: ModelConfig, context: int, bytes_per_value: int = 2) -> dict[str, int]:
    """Decode state of one sequence after ``context`` positions, in bytes.

    Args:
        bytes_per_value: of keys, values and convolution inputs; memory matrices are always float32.

    Returns:
        ``kv`` grows with every position; ``ring_kv`` (layers with a window) stops at the window; ``conv`` and
        ``recurrent`` are fixed.
    """
    mixers = [layer.mixer for layer in config.layers]
    seen = [min(context, mixer.window or context) if isinstance(mixer, Attention) else 0 for mixer in mixers]
    ringed = [isinstance(mixer, Attention) and mixer.window is not None for mixer in mixers]
    kv = [kv_values(mixer) * positions * bytes_per_value for mixer, positions in zip(mixers, seen, strict=True)]
    return {
        "kv": sum(size for size, ring in zip(kv, ringed, strict=True) if not ring),
        "ring_kv": sum(size for size, ring in zip(kv, ringed, strict=True) if ring),
        "conv": sum(tail_values(mixer, config.hidden_size) for mixer in mixers) * bytes_per_value,
        "recurrent": sum(map(recurrent_values, mixers)) * 4,
    }


def state_growth(config: ModelConfig) -> dict[str, int]:
    """The decode state in two numbers: bytes ``fixed`` once every window is full, and bytes ``per_token``."""
    full = state_bytes(config, max([1, *(_window(layer) for layer in config.layers)]))
    return {
        "fixed": full["ring_kv"] + full["conv"] + full["recurrent"],
        "per_token": state_bytes(config, 1)["kv"],
    }


def decode_bytes(config: ModelConfig, kind: str, context: int) -> dict[str, int]:
    """Bytes that one decoded token reads after ``context`` positions: each active weight once, and the whole state.

    An embedding that is not the head too is looked up: one row. ``total`` over the memory's bandwidth is the least
    time that a token takes at batch 1.
    """
    weights = 0
    for tensor in tensors(config):
        numbers = tensor.columns if tensor.role == "table" else tensor.active_parameters
        weights += _bytes(numbers, tensor_type(tensor, kind))
    state = sum(state_bytes(config, context).values())
    return {"weights": weights, "state": state, "total": weights + state}


def peak_memory(config: ModelConfig, kind: str, context: int, repack: Repack = "x86") -> dict[str, int]:
    """Bytes that llama.cpp holds at most, for one sequence of up to ``context`` positions in a file of type ``kind``.

    Args:
        repack: the processor whose layouts llama.cpp makes copies in; ``"none"`` for its ``--no-repack``.

    Returns:
        ``weights`` (the mapped file), ``repacked``, ``state`` (f16 keys and values, float32 for the rest; a window's
        cache has room for a batch more), ``compute`` (activations of a batch of 512 and the mask), ``runtime`` (the
        vocabulary's tables and the library) and ``total``. The process that embeds llama.cpp comes on top.
    """
    batch = min(BATCH, context)
    state = 0
    for layer in config.layers:
        mixer, room = layer.mixer, _padded(context)
        if isinstance(mixer, Attention) and mixer.window is not None:
            room = min(room, _padded(mixer.window + batch))
        state += 2 * kv_values(mixer) * room
        state += 4 * (tail_values(mixer, config.hidden_size) + recurrent_values(mixer))
    widest = max(_activations(layer) for layer in config.layers)
    # Measured: shapes with convolutions hold four more rows of the hidden size, those of attention alone none.
    beside = 4 * config.hidden_size if any(isinstance(layer.mixer, ShortConv) for layer in config.layers) else 0
    parts = {
        "weights": file_bytes(config, kind),
        "repacked": repacked_bytes(config, kind, repack),
        "state": state,
        "compute": batch * (4 * (widest + beside) + 2 * context) + 4 * config.vocab_size,
        "runtime": _VOCABULARY_ENTRY * config.vocab_size + _RUNTIME,
    }
    return parts | {"total": sum(parts.values())}


def largest_context(config: ModelConfig, kind: str, budget: int, repack: Repack = "x86") -> int:
    """Most positions, up to the model's own, for which :func:`peak_memory` stays within ``budget`` bytes; else 0."""

    def fits(context: int) -> bool:
        return peak_memory(config, kind, context, repack)["total"] <= budget

    return _last(fits, config.max_positions)


def _last(holds: Callable[[int], bool], most: int) -> int:
    """The largest number in 0..``most`` for which ``holds``, which is true up to it and false after."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def _window(layer: LayerConfig) -> int:
    return (layer.mixer.window or 0) if isinstance(layer.mixer, Attention) else 0


def _padded(positions: int) -> int:
    """llama.cpp's caches hold a multiple of 256 positions."""
    return -(-positions // 256) * 256


def _activations(layer: LayerConfig) -> int:
    """Numbers of a token that are held at once in the wider half of a layer, beside those of its hidden size."""
    feed_forward, mixer = layer.feed_forward, layer.mixer
    width = feed_forward.width * (feed_forward.active if isinstance(feed_forward, Experts) else 1)
    mixed = 2 * conv_channels(mixer) + mixer.value_heads * mixer.value_dim if isinstance(mixer, GatedDelta) else 0
    return max(3 * width, mixed)
