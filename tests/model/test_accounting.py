"""Parameter counts against the published ones and against real tensors; costs against what the model holds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from minnow.model.accounting import accounting, flops_per_token, parameter_parts, state_bytes
from minnow.model.backbone import Backbone
from minnow.model.config import ModelConfig
from minnow.model.presets import PRESETS

PUBLISHED = {"LFM2-350M": 354_483_968, "LFM2-700M": 742_489_344, "LFM2-1.2B": 1_170_340_608, "LFM2-2.6B": 2_569_272_320}


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_have_the_published_parameter_counts(name: str) -> None:
    config = PRESETS[name]
    assert accounting(config)["total"] == PUBLISHED[name]
    with torch.device("meta"):
        model = Backbone(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]
    assert ModelConfig.from_hf(config.to_hf()) == config


def test_every_preset_is_checked() -> None:
    assert set(PRESETS) == set(PUBLISHED)


def test_parts_name_what_the_tensors_are(make_model: Callable[..., Backbone]) -> None:
    model = make_model(layer_types=("conv", "full_attention", "conv", "conv"), conv_kernel=4)
    counted = {"embedding": 0, "attention": 0, "conv": 0, "mlp": 0, "norms": 0}
    for name, parameter in model.named_parameters():
        layer = name.split(".")[1] if name.startswith("layers") else ""
        mixer = "attention" if layer == "1" else "conv"
        part = (
            "embedding"
            if name == "embedding"
            else mixer
            if ".mixer." in name
            else "mlp"
            if "_proj" in name
            else "norms"
        )
        counted[part] += parameter.numel()
    assert parameter_parts(model.config) == counted
    shares = accounting(model.config)["shares"]
    assert sum(shares.values()) == pytest.approx(1.0)


def test_state_bytes_are_those_of_the_decode_state(make_model: Callable[..., Backbone]) -> None:
    model = make_model(conv_kernel=4)
    _, state = model.prefill(torch.ones(1, 5, dtype=torch.long), torch.tensor([5]), capacity=40)
    held = {"conv": 0, "kv": 0}
    for layer in state.layers:
        for name, tensor in vars(layer).items():
            held["conv" if name == "inputs" else "kv"] += tensor.numel() * tensor.element_size()
    assert state_bytes(model.config, 40, bytes_per_value=4) == held


def test_flops_are_those_that_torch_counts(make_model: Callable[..., Backbone]) -> None:
    """Matrix products forward and backward, counted by torch; the causal half of the scores is counted in full."""
    model, length = make_model(layer_types=("full_attention", "full_attention")), 64
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        (model(torch.ones(1, length, dtype=torch.long)) @ model.head.T).sum().backward()
    norms = sum(2 * layer.mixer.head_dim for layer in model.layers)
    assert counter.get_total_flops() / length == pytest.approx(
        flops_per_token(model.config, length) - 6 * norms, rel=0.001
    )
