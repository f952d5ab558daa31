from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from minnow.model.backbone import Backbone
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe import fit
from minnow.recipe.fit import fit_machine
from minnow.train.loop import Trainer
from minnow.train.precision import compile_pays
from minnow.train.ranks import Ranks

CONFIG = lfm2_config(
    vocab_size=64, hidden_size=32, intermediate_size=32, layer_types=("conv", "full_attention"), num_heads=2,
    num_kv_heads=1, head_dim=16, max_positions=64,
)  # fmt: skip


def test_compiling_pays_in_long_trainings_on_a_gpu_alone() -> None:
    gpu, cpu = torch.device("cuda"), torch.device("cpu")
    assert compile_pays(gpu, 3600.0) and not compile_pays(gpu, 300.0)
    assert not compile_pays(cpu, 1e9)


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A stand-in for one whose model is on another device than the CPU; notes what is done to it."""
    done: list[Any] = []
    with torch.device("meta"):
        model = Backbone(CONFIG)
    monkeypatch.setattr(model, "compile", lambda: done.append("compiled"))
    monkeypatch.setattr(fit, "free_memory", lambda device: 10**9)
    monkeypatch.setattr(fit, "peak_flops", lambda device: 1e9)
    settings = SimpleNamespace(steps=100, optimizer=SimpleNamespace(muon=True))
    return SimpleNamespace(model=model, settings=settings, limit=done.append, notes={}, done=done, ranks=Ranks())


@pytest.mark.parametrize("pays", [True, False])
def test_what_was_chosen_is_said_and_kept(
    trainer: Any, pays: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    foretold: list[float] = []
    monkeypatch.setattr(fit, "compile_pays", lambda device, seconds: (foretold.append(seconds), pays)[1])
    fit_machine("pretrain", cast(Trainer, trainer), 8, 32)
    assert trainer.done == [8 * 32, *(["compiled"] if pays else [])]
    assert foretold == [pytest.approx(100 * 8 * 32 * fit.training_flops(trainer.model, 32) / 0.35e9)]
    told = capsys.readouterr().err
    assert "pretrain: 8 of a step's 8 rows at once, about " in told and ("compiled" in told) == pays
    # A run that goes on does as it began, whatever the machine says now.
    monkeypatch.setattr(fit, "compile_pays", lambda device, seconds: not pays)
    fit_machine("pretrain", cast(Trainer, trainer), 8, 32)
    assert trainer.done.count("compiled") == (2 if pays else 0)


def test_rows_that_do_not_fit_are_said_to(
    trainer: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(fit, "free_memory", lambda device: 10)
    fit_machine("sft", cast(Trainer, trainer), 8, 32)
    assert trainer.done[0] == 32 and "may run out of memory; use shorter rows" in capsys.readouterr().err
