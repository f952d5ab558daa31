"""A tiny model and tokenizer of the pocket world, shared by every test that needs real ones."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest
import torch

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.tasks import PocketWorld

# How fast examples are drawn says how busy the machine is.
hypothesis.settings.register_profile("minnow", suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("minnow")

sys.path.insert(0, str(Path(__file__).parent))  # for ``bad_server``, whatever pytest's import mode


def tiny_config(
    vocab_size: int = 512, layer_types: tuple[str, ...] = (CONV, ATTENTION, CONV), **shape: int
) -> ModelConfig:
    """Hidden 64, four query and two key heads of 16, unless told otherwise."""
    widths = {"hidden_size": 64, "intermediate_size": 96, "num_heads": 4, "num_kv_heads": 2, "head_dim": 16}
    return lfm2_config(vocab_size=vocab_size, layer_types=layer_types, max_positions=2048, **(widths | shape))


def random_model(config: ModelConfig, seed: int = 0) -> Backbone:
    """float32; norms are drawn too, so that a norm applied with the wrong weight shows."""
    model = Backbone(config)
    model.initialise(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() == 1:
                parameter.copy_(1 + 0.3 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.fixture(scope="session")
def pocket() -> PocketWorld:
    return PocketWorld(0, 200)


@pytest.fixture(scope="session")
def words(pocket: PocketWorld) -> Tokenizer:
    return train_tokenizer(pocket.documents(300), 500)


@pytest.fixture
def tiny_model(words: Tokenizer) -> Backbone:
    """Twelve more embedding rows than tokens."""
    return random_model(tiny_config(words.vocab_size + 12))


@pytest.fixture
def make_model() -> Callable[..., Backbone]:
    """``make_model(seed=…, vocab_size=…, layer_types=…, hidden_size=…, …)``."""
    return lambda seed=0, **shape: random_model(tiny_config(**shape), seed)
