"""Parameter counts against the published ones, transformers and real tensors; costs against what the model holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minnow.model.accounting import (
    accounting,
    active_parts,
    decode_flops,
    embedding_share,
    flops_per_token,
    parameter_parts,
    prefill_flops,
)
from minnow.model.backbone import Backbone
from minnow.model.config import (
    Attention,
    Dense,
    Experts,
    FeedForward,
    GatedDelta,
    GatedLinear,
    LayerConfig,
    Mixer,
    ModelConfig,
    Rope,
    ShortConv,
)
from minnow.model.footprint import state_bytes, state_growth
from minnow.model.presets import EXTRAS, PRESETS

ROPE = Rope(1e4)
MIXERS: dict[str, Mixer] = {
    "attention": Attention(4, 2, 16, ROPE),
    "attention with a gate per head and no QK-norm": Attention(4, 1, 32, ROPE, qk_norm=False, output_gate="head"),
    "attention with a gate per element": Attention(4, 2, 16, Rope(1e4, share=0.5), output_gate="element"),
    "attention over a window": Attention(2, 2, 16, ROPE, window=8),
    "convolution": ShortConv(5),
    "gated delta net": GatedDelta(key_heads=2, value_heads=4, key_dim=8, value_dim=16, kernel=4),
    "gated linear attention": GatedLinear(heads=2, key_dim=8, value_dim=16, gate_rank=4),
}
PART = {Attention: "attention", ShortConv: "conv", GatedDelta: "linear_attention", GatedLinear: "linear_attention"}


def shaped(*mixers: Mixer, feed_forward: FeedForward | None = None, **rest: bool) -> ModelConfig:
    layers = tuple(LayerConfig(mixer, feed_forward or Dense(96)) for mixer in mixers)
    return ModelConfig("minnow", vocab_size=320, hidden_size=64, layers=layers, max_positions=2048, **rest)


def counted(config: ModelConfig) -> dict[str, int]:
    """Parameters by part, from the names of a real model's tensors."""
    with torch.device("meta"):
        model = Backbone(config)
    parts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        words = name.split(".")
        if name in ("embedding", "output"):
            part = {"embedding": "embedding", "output": "head"}[name]
        elif words[0] == "layers" and words[2] == "mixer":
            part = PART[type(config.layers[int(words[1])].mixer)]
        elif words[0] == "layers" and words[2] == "feed_forward":
            dense = isinstance(config.layers[int(words[1])].feed_forward, Dense)
            part = "mlp" if dense else "router" if words[3] == "router" else "experts"
        else:
            part = "norms"
        parts[part] += parameter.numel()
    return dict(parts)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
@pytest.mark.parametrize("feed_forward", [Dense(96), Experts(6, 2, 32)], ids=["dense", "experts"])
def test_parts_are_those_of_a_real_model(mixer: Mixer, feed_forward: FeedForward) -> None:
    for rest in ({}, {"tied": False, "sandwich": True}):
        config = shaped(mixer, ShortConv(3), feed_forward=feed_forward, **rest)
        assert {part: count for part, count in parameter_parts(config).items() if count} == counted(config)


def test_shares_add_up_and_only_idle_experts_are_inactive() -> None:
    config = shaped(*MIXERS.values(), feed_forward=Experts(6, 2, 32), tied=False)
    assert sum(accounting(config)["shares"].values()) == pytest.approx(1.0)
    every, active = parameter_parts(config), active_parts(config)
    assert active.pop("experts") * 3 == every.pop("experts")
    assert active == every


@pytest.mark.parametrize(
    ("name", "total", "checkpoint"),
    [("gemma-3-270m", 0.6258, None), ("lfm2.5-350m", 0.1893, None), ("qwen3.5-0.8b", 0.3380, 0.2911)],
)
def test_embedding_shares_are_the_published_ones(name: str, total: float, checkpoint: float | None) -> None:
    shares = embedding_share(PRESETS[name], sum(EXTRAS.get(name, {}).values()))
    assert round(shares["total"] or 0, 4) == total
    assert (None if shares["checkpoint"] is None else round(shares["checkpoint"], 4)) == checkpoint


def test_every_denominator_is_what_it_says() -> None:
    tied = shaped(MIXERS["attention"], feed_forward=Experts(4, 1, 32))
    table, total = 320 * 64, accounting(tied)["total"]
    idle = 3 * 3 * 64 * 32
    assert embedding_share(tied) == {
        "total": table / total,
        "with_head": 2 * table / (total + table),
        "active": table / (total - idle),
        "non_embedding": table / (total - table),
        "checkpoint": None,
    }
    apart = embedding_share(replace(tied, tied=False), extras=1000)
    assert apart["total"] == table / (total + table)
    assert apart["with_head"] == 2 * table / (total + table)
    assert apart["non_embedding"] == table / (total - table)
    assert apart["checkpoint"] == table / (total + table + 1000)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_state_bytes_are_those_of_the_decode_state(mixer: Mixer) -> None:
    config = shaped(mixer, mixer)
    model = Backbone(config)
    model.initialise(0)
    _, state = model.prefill(torch.ones(1, 5, dtype=torch.long), torch.tensor([5]), capacity=40)
    held = sum(tensor.numel() * tensor.element_size() for layer in state.layers for tensor in layer.tensors())
    expected = state_bytes(config, 40, bytes_per_value=4)
    assert sum(expected.values()) == held
    # Half as wide values, the memory matrices as they were.
    assert sum(state_bytes(config, 40).values()) == (held + expected["recurrent"]) // 2


def test_state_growth_is_what_a_longer_context_adds() -> None:
    config = shaped(*MIXERS.values())
    growth = state_growth(config)
    for context in (8, 100, 1000):
        held = sum(state_bytes(config, context).values())
        assert held == growth["fixed"] + context * growth["per_token"]
    assert sum(state_bytes(config, 4).values()) < growth["fixed"] + 4 * growth["per_token"]


def test_training_flops_are_those_that_torch_counts(make_model: Callable[..., Backbone]) -> None:
    """Matrix products forward and backward, counted by torch; the causal half of the scores is counted in full."""
    # In float64, which is torch's own: what the fused kernels multiply is not counted.
    model, length = make_model(layer_types=("full_attention", "full_attention")).double(), 64
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (model(torch.ones(1, length, dtype=torch.long)) @ model.head.T).sum().backward()
    assert counter.get_total_flops() / length == pytest.approx(flops_per_token(model.config, length), rel=0.001)


@pytest.mark.parametrize("mixer", MIXERS.values(), ids=MIXERS)
def test_a_step_costs_the_products_that_torch_counts(mixer: Mixer) -> None:
    """All but what torch does not count as products: scores and memory at one position, and the convolution's taps."""
    config = shaped(mixer, feed_forward=Experts(4, 4, 32), tied=False)  # every expert, as the counter sees it
    model = Backbone(config)
    model.initialise(0)
    _, state = model.prefill(torch.ones(1, 7, dtype=torch.long), torch.tensor([7]), capacity=8)
    with FlopCounterMode(display=False) as counter:
        model.step(torch.ones(1, dtype=torch.long), state) @ model.head.T
    small = {  # taps; 4 FLOPs per head dimension and position seen; 7 or 5 per number of a memory matrix
        Attention: lambda: 4 * mixer.heads * mixer.head_dim * 8,
        ShortConv: lambda: 2 * 64 * 5,
        GatedDelta: lambda: 2 * 96 * 4 + 7 * 4 * 8 * 16,
        GatedLinear: lambda: 5 * 2 * 8 * 16,
    }[type(mixer)]()
    foreseen = decode_flops(config, 8)
    assert foreseen - small <= counter.get_total_flops() <= foreseen


def test_prefill_flops_are_the_mean_over_the_prompt() -> None:
    """Position by position, a window sees no more than itself, and the head reads the last token only."""
    config = shaped(MIXERS["attention"], MIXERS["attention over a window"], MIXERS["gated delta net"])
    head, length = 2 * 320 * 64, 50
    every = sum(decode_flops(config, position) - head for position in range(1, length + 1))
    assert prefill_flops(config, length) == pytest.approx((every + head) / length)
    # Training counts half the row in place of its mean position, and the head at every token.
    full = shaped(MIXERS["attention"])
    scores = 4 * 64 * (length / 2)
    assert flops_per_token(full, length // 2) == pytest.approx(3 * (decode_flops(full, 1) - 4 * 64 + scores))
