"""Adapters in training: gradients against peft's, the optimiser's interface, and what a stage may rely on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sequence_cases import drawn

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.adapter import save_adapter
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_model, save_checkpoint
from minnow.recipe.stages.training import TextTrainingSettings
from minnow.train.loop import Trainer, TrainSettings
from minnow.train.lora import LoraOptimizer, LoraSettings
from minnow.train.milestones import CheckpointSettings
from minnow.train.objectives import next_token, pack_sequences
from minnow.train.optimizer import OptimizerSettings

PLAIN = OptimizerSettings(learning_rate=1e-2, muon=False, weight_decay=0.0, clip=1e9)


def made(model: Backbone, lora: LoraSettings, settings: OptimizerSettings = PLAIN) -> LoraOptimizer:
    return LoraOptimizer(model, settings, lora, torch.float32)


def backward(model: Backbone, seed: int = 0) -> None:
    loss = next_token(model, pack_sequences(*drawn(4, seed), 24))
    (loss.total / loss.weight).backward()


@pytest.mark.parametrize("targets", [(), ("q_proj", "w1"), ("in_proj",)])
def test_the_factors_gradients_are_pefts(
    tmp_path: Path, make_model: Callable[..., Backbone], words: Tokenizer, targets: tuple[str, ...]
) -> None:
    """From factors that are not zero, on one batch with one sequence a row."""
    peft = pytest.importorskip("peft", reason="the reference is peft: pip install peft")
    from transformers import AutoModelForCausalLM

    model = make_model(vocab_size=512)
    save_checkpoint(model, words, tmp_path / "base")
    optimizer = made(model, LoraSettings(3, 6.0, targets))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for factor in optimizer.inner.masters:
            factor.copy_(0.1 * torch.randn(factor.shape, generator=generator))
    optimizer.publish()
    save_adapter(tmp_path / "adapter", optimizer.adapter(optimizer.weights()), str(tmp_path / "base"))
    ids = torch.randint(14, 512, (3, 12), generator=generator)

    hidden = model(ids)
    loss = torch.nn.functional.cross_entropy(model.logits(hidden)[:, :-1].flatten(0, 1), ids[:, 1:].flatten())
    loss.backward()
    optimizer.collect()
    ours = optimizer._named(optimizer.inner._sums or [])

    plain = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    adapted = peft.PeftModel.from_pretrained(plain, tmp_path / "adapter", is_trainable=True)
    adapted(ids, labels=ids).loss.backward()
    theirs = {
        name.removeprefix("base_model.model.").replace(".lora_", ".weight.lora_").replace(".default.weight", ""): p.grad
        for name, p in adapted.named_parameters()
        if p.grad is not None
    }
    assert ours.keys() == theirs.keys() and len(ours) > 0
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, theirs[name], atol=1e-5, rtol=1e-3)


def test_nothing_but_the_adapted_matrices_moves_and_the_update_is_low_rank(make_model: Callable[..., Backbone]) -> None:
    model = make_model()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = made(model, LoraSettings(2, targets=("q_proj", "w2")))
    for seed in range(4):
        backward(model, seed)
        optimizer.collect()
        optimizer.step(1e-2, 1.0)
    after = model.state_dict()
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved == {f"layers.{i}.feed_forward.down_proj.weight" for i in range(3)} | {"layers.1.mixer.qkv_proj.weight"}
    change = (after["layers.1.mixer.qkv_proj.weight"] - before["layers.1.mixer.qkv_proj.weight"]).double()
    assert not change[64:].any(), "keys and values stay"
    assert torch.linalg.matrix_rank(change, rtol=1e-4) == 2
    for name in moved:
        torch.testing.assert_close(optimizer.weights()[name], after[name])


def test_it_begins_at_the_checkpoint_and_micro_batches_add_up(make_model: Callable[..., Backbone]) -> None:
    model, other = make_model(), make_model()
    one, two = made(model, LoraSettings(4)), made(other, LoraSettings(4))
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), make_model().state_dict().values(), strict=True)
    )
    backward(model, 1)
    backward(model, 2)
    one.collect()
    for seed in (1, 2):
        backward(other, seed)
        two.collect()
    assert one.step(1e-2, 2.0) == pytest.approx(two.step(1e-2, 2.0), rel=1e-4)
    for a, b in zip(one.inner.masters, two.inner.masters, strict=True):
        torch.testing.assert_close(a, b, atol=2e-4, rtol=1e-3)


def test_a_target_that_is_not_there_is_named(make_model: Callable[..., Backbone]) -> None:
    with pytest.raises(UserError, match="no linear map 'gate_proj' to adapt; targets are in_proj, k_proj"):
        made(make_model(), LoraSettings(targets=("gate_proj",)))


def test_adapters_are_refused_where_they_mean_nothing() -> None:
    with pytest.raises(UserError, match="leave out lora or checkpoints.average"):
        TrainSettings(4, lora=LoraSettings(), checkpoints=CheckpointSettings(every=1, average=2))
    with pytest.raises(UserError, match="this stage begins without one"):
        TextTrainingSettings(training=TrainSettings(4, lora=LoraSettings()))
    for wrong in ({"rank": 0}, {"alpha": 0.0}):
        with pytest.raises(UserError, match="at least rank 1"):
            LoraSettings(**wrong)


def test_the_trainer_resumes_an_adapter_exactly(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "base")
    settings = TrainSettings(6, PLAIN, lora=LoraSettings(4), log_every=1, spike=0.0)

    def trainer(state: str, losses: list[float], stop: int | None = None) -> Trainer:
        def batches(step: int) -> list[Any]:
            if step == stop:
                raise KeyboardInterrupt
            return [pack_sequences(*drawn(4, step), 24)]

        def record(**values: float) -> None:
            losses.append(values["loss"])

        return Trainer(load_model(tmp_path / "base"), next_token, batches, settings, record, tmp_path / state)

    whole: list[float] = []
    unbroken = trainer("whole.pt", whole)
    unbroken.run()
    parts: list[float] = []
    with pytest.raises(KeyboardInterrupt):
        trainer("parts.pt", parts, stop=3).run()
    resumed = trainer("parts.pt", parts)
    resumed.run()
    assert parts == whole and whole[-1] < whole[0] + 1
    for name, tensor in unbroken.optimizer.weights().items():
        assert torch.equal(tensor, resumed.optimizer.weights()[name])
    # The saved adapter on the checkpoint it began from is the model as it is now.
    optimizer = resumed.optimizer
    assert isinstance(optimizer, LoraOptimizer)
    save_adapter(tmp_path / "adapter", optimizer.adapter(optimizer.averaged()), str(tmp_path / "base"))
    again = load_model(tmp_path / "adapter").state_dict()
    for name, tensor in resumed.optimizer.weights().items():
        if name in again:
            torch.testing.assert_close(again[name], tensor)
