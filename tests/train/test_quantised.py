"""Training the weights that a file will hold: rounding, the straight-through gradient, and the optimiser's interface."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sequence_cases import drawn

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.blocks import rounded
from minnow.model.checkpoint import load_model, save_checkpoint
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.objectives import next_token, pack_sequences
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.quantised import QuantisedOptimizer, rounded_types

SETTINGS = OptimizerSettings(learning_rate=1e-2, muon=False)


def copied(model: Backbone) -> Backbone:
    other = Backbone(model.config)
    other.load_state_dict(model.state_dict())
    return other


def test_what_is_rounded_is_what_a_file_rounds(tiny_model: Backbone) -> None:
    types = rounded_types(tiny_model, "Q4_0")
    assert types.pop("embedding") == "Q8_0"  # it is the head too
    assert set(types.values()) == {"Q4_0"} and "layers.0.mixer.in_proj.weight" in types
    left = {name for name, _ in tiny_model.named_parameters()} - types.keys() - {"embedding"}
    assert all("norm" in name or name.endswith("conv") for name in left)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_at_the_rounded_weights_move_the_masters(tiny_model: Backbone, dtype: torch.dtype) -> None:
    """As a plain optimiser moves them that is given the same gradients."""
    plain_model = copied(tiny_model)
    optimizer = QuantisedOptimizer(tiny_model, SETTINGS, dtype, "Q4_0")
    plain = Optimizer(plain_model, SETTINGS, dtype, {})
    for step in range(3):
        for i, (master, weight) in enumerate(zip(optimizer.masters, tiny_model.parameters(), strict=True)):
            seen = rounded(master, optimizer.types[i]) if i in optimizer.types else master
            torch.testing.assert_close(weight.detach(), seen.to(dtype), rtol=0, atol=0)
        next_token(tiny_model, pack_sequences(*drawn(4, step), 24)).total.backward()
        for weight, other in zip(tiny_model.parameters(), plain_model.parameters(), strict=True):
            assert weight.grad is not None
            other.grad = weight.grad.clone()
        optimizer.collect()
        plain.collect()
        assert optimizer.step(1e-2, 10.0) == plain.step(1e-2, 10.0)
        for ours, theirs in zip(optimizer.masters, plain.masters, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_its_weights_are_those_of_the_file(tiny_model: Backbone, words: Tokenizer, tmp_path: Path) -> None:
    optimizer = QuantisedOptimizer(tiny_model, SETTINGS, torch.float32, "Q4_0")
    save_checkpoint(tiny_model, words, tmp_path, optimizer.weights())
    saved = load_model(tmp_path).state_dict()
    for name, kind in rounded_types(tiny_model, "Q4_0").items():
        torch.testing.assert_close(rounded(saved[name], kind), saved[name], rtol=0, atol=0)
        torch.testing.assert_close(saved[name], tiny_model.state_dict()[name], rtol=0, atol=0)


def test_the_trainer_resumes_it_exactly(tmp_path: Path, tiny_model: Backbone) -> None:
    def trainer(model: Backbone, file: str, steps: int) -> Trainer:
        settings = TrainSettings(steps, SETTINGS, "cosine", quantised="Q4_0", save_seconds=1e9)
        batches = {step: [pack_sequences(*drawn(4, step), 24)] for step in range(8)}
        return Trainer(model, next_token, batches.__getitem__, settings, lambda **_: None, tmp_path / file)

    whole = trainer(copied(tiny_model), "whole.pt", 8)
    whole.run()
    parts = trainer(copied(tiny_model), "parts.pt", 8)
    for _ in range(4):
        parts._step()
    parts.save()
    resumed = trainer(copied(tiny_model), "parts.pt", 8)
    assert resumed.done_steps == 4
    resumed.run()
    for name, tensor in whole.optimizer.weights().items():
        assert torch.equal(tensor, resumed.optimizer.weights()[name])
    for master, other in zip(whole.optimizer.masters, resumed.optimizer.masters, strict=True):  # type: ignore[union-attr]
        assert torch.equal(master, other)


def test_settings_that_exclude_each_other() -> None:
    from minnow.train.lora import LoraSettings

    with pytest.raises(UserError, match="leave out quantised"):
        TrainSettings(10, lora=LoraSettings(), quantised="Q4_0")
