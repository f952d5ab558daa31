"""What one layer of each operator costs on this machine, prefill and decode, from models that differ in it alone.

A layer's cost is the difference between a model with four layers more and one without them, so that embedding, head and
the runtime's own time drop out; the feed-forward's is what doubling it adds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from minnow.device.bench import Engine
from minnow.device.machine import load_average
from minnow.device.timing import Speed, time_shapes
from minnow.errors import UserError
from minnow.model.config import (
    Attention,
    Dense,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.progress import track

FEED_FORWARD = "feed-forward"
_VOCABULARY = 1024
_MORE = 4  # layers
_ANSWER = 24  # tokens decoded after each context
_RATIO = 4.5  # of the feed-forward's width to the model's, LFM2-350M's
_WINDOW = 256  # LFM3's


@dataclass(frozen=True)
class _Pair:
    """Two models whose difference is ``layers`` layers of an operator and as many feed-forwards."""

    small: ModelConfig
    large: ModelConfig
    layers: int = _MORE


def operators(width: int) -> dict[str, Mixer]:
    """Each mixer at ``width`` in the proportions of the model that made it known.

    Heads of 64, two queries to a key (LFM2, and with LFM3's window of 256); keys and values twice the width (Qwen3.5);
    keys of half the width in four heads (GLA's paper).
    """
    heads = width // 64
    attention = Attention(heads, max(1, heads // 2), 64, Rope(1e6))
    return {
        "short convolution": ShortConv(3),
        "GQA": attention,
        f"sliding window {_WINDOW}": Attention(heads, max(1, heads // 2), 64, Rope(1e4), window=_WINDOW),
        "gated delta net": GatedDelta(heads, heads, 128, 128),
        "gated linear attention": GatedLinear(4, width // 8, width // 4),
    }


def operator_costs(
    width: int,
    contexts: Sequence[int],
    engine: Engine = "llama.cpp",
    threads: int = 1,
    repeats: int = 5,
    kind: str = "Q4_0",
) -> dict[str, Any]:
    """Time every operator that ``engine`` expresses.

    Args:
        width: of the residual stream, a multiple of 128.
        contexts: tokens; prefill is of that many, decoding is after that many.
        kind: GGUF type for llama.cpp; torch computes in the machine's fast type.

    Returns:
        ``width``, ``engine``, ``type``, ``threads``, ``load_average`` (before), ``cpu_share`` (least), ``spread``
        (largest) and ``rows``: ``operator``, ``context``, ``prefill_ms`` of the whole prompt and ``decode_us`` of a
        token, for one layer; ``prefill_ratio`` and ``decode_ratio`` to the short convolution. None where the engine
        does not express the operator.

    Raises:
        UserError: a width or context that makes no model.
    """
    if width < 256 or width % 128:
        raise UserError(f"operators are measured at widths of 256, 384, 512, …; {width} is not a multiple of 128")
    if not contexts or min(contexts) < 1:
        raise UserError("name at least one context of 1 token or more with --context")
    load = load_average()
    pairs = _llama_pairs(width) if engine == "llama.cpp" else _torch_pairs(width)
    shapes = {f"{name}/{end}": getattr(pair, end) for name, pair in pairs.items() for end in ("small", "large")}
    unique: dict[ModelConfig, str] = {}
    for name, config in shapes.items():
        unique.setdefault(config, name)
    with track(len(unique), f"operators, {engine}", "models") as bar:
        speeds = time_shapes(
            {name: config for config, name in unique.items()}, contexts, _ANSWER, repeats, threads, engine, kind,
        )  # fmt: skip
        bar.advance(len(unique))
    rows = [
        _row(name, pairs.get(name), place, context, {c: speeds[n][place] for c, n in unique.items()}, pairs)
        for name in [*operators(width), FEED_FORWARD]
        for place, context in enumerate(contexts)
    ]
    for row in rows:
        base = next(r for r in rows if r["operator"] == "short convolution" and r["context"] == row["context"])
        for key in ("prefill", "decode"):
            field = f"{key}_ms" if key == "prefill" else f"{key}_us"
            row[f"{key}_ratio"] = None if row[field] is None else row[field] / base[field]
    every = [speed for found in speeds.values() for speed in found]
    return {
        "width": width,
        "engine": engine,
        "type": kind if engine == "llama.cpp" else None,
        "threads": threads,
        "load_average": load,
        "cpu_share": min(speed.cpu_share for speed in every),
        "spread": max(speed.spread for speed in every),
        "rows": rows,
    }


def _row(
    name: str,
    pair: _Pair | None,
    place: int,
    context: int,
    speeds: dict[ModelConfig, Speed],
    pairs: dict[str, _Pair],
) -> dict[str, Any]:
    row: dict[str, Any] = {"operator": name, "context": context, "prefill_ms": None, "decode_us": None}
    if pair is None:
        return row

    def cost(one: _Pair, field: str) -> float:
        return float(getattr(speeds[one.large], field) - getattr(speeds[one.small], field)) / one.layers

    for key, field, scale in (("prefill_ms", "ttft_ms", 1.0), ("decode_us", "token_ms", 1e3)):
        feed_forward = cost(pairs[FEED_FORWARD], field)
        row[key] = scale * (feed_forward if name == FEED_FORWARD else cost(pair, field) - feed_forward)
    return row


def _model(family: str, mixers: Sequence[Mixer], width: int, ratio: float = _RATIO, **more: Any) -> ModelConfig:
    layers = tuple(LayerConfig(mixer, Dense(int(ratio * width))) for mixer in mixers)
    return ModelConfig(family, _VOCABULARY, width, layers, **more)


def _torch_pairs(width: int) -> dict[str, _Pair]:
    mixers = operators(width)
    pairs = {
        name: _Pair(_model("minnow", [mixer], width), _model("minnow", [mixer] * (1 + _MORE), width))
        for name, mixer in mixers.items()
    }
    small = pairs["short convolution"].large
    return pairs | {
        FEED_FORWARD: _Pair(small, _model("minnow", [ShortConv(3)] * (1 + _MORE), width, 2 * _RATIO), 1 + _MORE)
    }


def _llama_pairs(width: int) -> dict[str, _Pair]:
    """Each in an architecture that llama.cpp knows: LFM2, Gemma 3 (its first five layers slide), Qwen3.5."""
    conv, full, near, delta, _ = operators(width).values()
    assert isinstance(full, Attention) and isinstance(near, Attention)
    small = _model("lfm2", [full, conv], width)  # llama.cpp aborts where one of the two is missing
    long = [full, conv, *[conv] * _MORE]
    gated = Attention(full.heads, full.kv_heads, 64, Rope(1e7, share=0.5), output_gate="element")

    def qwen(deltas: int) -> ModelConfig:
        return _model("qwen3_5_text", [*[delta] * deltas, gated], width, norm_offset=True)

    def gemma(layers: int) -> ModelConfig:
        return _model("gemma3_text", [near] * layers, width, norm_offset=True, sandwich=True)

    return {
        "short convolution": _Pair(small, _model("lfm2", long, width)),
        "GQA": _Pair(small, _model("lfm2", [full, conv, *[full] * _MORE], width)),
        f"sliding window {_WINDOW}": _Pair(gemma(1), gemma(1 + _MORE)),
        "gated delta net": _Pair(qwen(3), qwen(3 + _MORE)),
        FEED_FORWARD: _Pair(_model("lfm2", long, width), _model("lfm2", long, width, 2 * _RATIO), len(long)),
    }
