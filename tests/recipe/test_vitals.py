from __future__ import annotations

import pytest
import torch

from minnow.model.accounting import flops_per_token
from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe import vitals
from minnow.recipe.vitals import NOISY, Vitals, shown
from minnow.train import precision
from minnow.train.precision import peak_flops

CONFIG = lfm2_config(
    vocab_size=64, hidden_size=32, intermediate_size=32, layer_types=("conv", "full_attention"), num_heads=2,
    num_kv_heads=1, head_dim=16, max_positions=64,
)  # fmt: skip
LINE = {"step": 10, "tokens": 640, "loss": 2.5, "tokens_per_second": 1000.0, "gradient_norm": 0.5}


def test_a_logged_step_gets_its_share_of_the_peak_memory_and_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vitals, "peak_flops", lambda device: 1e9)
    told = Vitals(Backbone(CONFIG), 32, lambda steps: steps / 8)(LINE, batches_read=12)
    assert told["mfu"] == pytest.approx(1000 * flops_per_token(CONFIG, 16) / 1e9)
    assert told["epochs"] == 1.5 and told["memory_bytes"] > 2**20
    assert set(told) - set(LINE) - set(NOISY) == {"epochs"}, "a field of the machine's own is named as such"
    assert list(told)[: len(LINE)] == list(LINE)


def test_other_lines_stay_as_they_are() -> None:
    line = {"step": 10, "held_out_loss": 2.0, "bits_per_byte": 1.5}
    assert Vitals(Backbone(CONFIG))(line, 10) == line


def test_the_sources_of_a_mixture_have_a_loss_each(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step of 100 positions, 80 of the first source; the second has none in it."""
    monkeypatch.setattr(vitals, "peak_flops", lambda device: 1e9)
    raw = {"source.0.loss": 1.6, "source.0.tokens": 0.8, "source.2.loss": 0.6, "source.2.tokens": 0.2}
    told = Vitals(Backbone(CONFIG), 32, sources=["web", "code", "books"])({**LINE, **raw}, 12)
    wanted = {"web": {"loss": 2.0, "share": 0.8}, "books": {"loss": pytest.approx(3.0), "share": 0.2}}
    assert told["sources"] == wanted and not any(name.startswith("source.") for name in told)
    assert shown(told)["loss of web"] == "2.000"


def test_what_a_person_reads() -> None:
    line = LINE | {"mfu": 0.423, "memory_bytes": 3 * 2**29, "held_out_loss": 2.0, "clipped": 1.0}
    assert shown(line) == {
        "gradient norm": "0.5", "tokens": "640", "tokens/s": "1000",
        "of the measured peak": "42%", "memory": "1.50 GiB",
    }  # fmt: skip


def test_the_peak_is_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    precision._square_product.cache_clear()
    peak = peak_flops(torch.device("cpu"))
    assert peak > 1e8
    monkeypatch.setattr(torch, "mm", None)
    assert peak_flops(torch.device("cpu")) == peak
