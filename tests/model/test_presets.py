"""Published shapes: counts to the parameter, and the same network as transformers builds from their config.json."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minnow.model.accounting import accounting
from minnow.model.backbone import Backbone
from minnow.model.config import ModelConfig
from minnow.model.presets import EXTRAS, PRESETS, find_preset

PUBLISHED = {
    "lfm2-350m": 354_483_968,
    "lfm2-700m": 742_489_344,
    "lfm2-1.2b": 1_170_340_608,
    "lfm2-2.6b": 2_569_272_320,
    "lfm2.5-350m": 354_483_968,
    "lfm2.5-1.2b": 1_170_340_608,
    "lfm2-8b-a1b": 8_339_929_856,
    "gemma-3-270m": 268_098_176,
    "qwen3-0.6b": 596_049_920,
    "qwen3.5-0.8b": 752_393_024,
    "smollm2-135m": 134_515_008,
    "smollm2-360m": 361_821_120,
}
ROUNDED = {  # billions, total and active, as published
    "lfm2-8b-a1b": ("8.34", "1.56"),
    "lfm2.5-8b-a1b": ("8.47", "1.69"),
    "lfm2-24b-a2b": ("23.84", "2.33"),
    "lfm3-1.7b": ("1.73", "1.73"),
}


def test_every_preset_is_checked() -> None:
    assert set(PRESETS) == set(PUBLISHED) | set(ROUNDED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_totals_are_the_published_ones(name: str) -> None:
    assert accounting(PRESETS[name])["total"] == PUBLISHED[name]


@pytest.mark.parametrize("name", ROUNDED)
def test_totals_and_active_parameters_round_to_the_published_ones(name: str) -> None:
    numbers = accounting(PRESETS[name])
    assert (f"{numbers['total'] / 1e9:.2f}", f"{numbers['active'] / 1e9:.2f}") == ROUNDED[name]


@pytest.mark.parametrize("name", PRESETS)
def test_the_backbone_and_transformers_hold_as_many(name: str) -> None:
    config = PRESETS[name]
    assert ModelConfig.from_hf(config.to_hf()) == config
    written = config.to_hf()
    with torch.device("meta"):
        ours = Backbone(config)
        theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**written))
    total = accounting(config)["total"]
    assert sum(parameter.numel() for parameter in ours.parameters()) == total
    assert sum(parameter.numel() for parameter in theirs.parameters()) == total


def test_lookup_ignores_capitals() -> None:
    assert find_preset("LFM2.5-350M") is PRESETS["lfm2.5-350m"]
    assert find_preset("Gemma-3-270m") is PRESETS["gemma-3-270m"]
    assert find_preset("lfm2-351m") is None


def test_the_whole_checkpoint_of_qwen_is_the_published_one() -> None:
    assert PUBLISHED["qwen3.5-0.8b"] + sum(EXTRAS["qwen3.5-0.8b"].values()) == 873_438_784
