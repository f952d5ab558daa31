"""What a dry run foretells, against what training really holds and takes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from minnow.cli.plan_text import plan_text
from minnow.data.loader import Batch
from minnow.model import kernels
from minnow.model.accounting import flops_per_token
from minnow.model.backbone import Backbone
from minnow.model.config import ATTENTION, CONV, ModelConfig
from minnow.model.families.lfm2 import lfm2_config
from minnow.recipe import plan as planning
from minnow.recipe import speed
from minnow.recipe.plan import plan
from minnow.recipe.registry import stage_kinds
from minnow.recipe.schema import Recipe, parse_recipe
from minnow.train.memory import activation_bytes, training_memory
from minnow.train.objectives import next_token
from minnow.train.optimizer import Optimizer, OptimizerSettings
from minnow.train.precision import compute_dtype

SMALL = lfm2_config(512, 64, 160, (CONV, ATTENTION, CONV), num_heads=4, num_kv_heads=2, head_dim=16)


def batch_of(config: ModelConfig, rows: int, length: int) -> Batch:
    tokens = torch.randint(config.vocab_size, (rows, length), generator=torch.Generator().manual_seed(0))
    return Batch(tokens, tokens.roll(-1, 1), torch.ones((rows, length), dtype=torch.int16))


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    training = {"steps": 7, "optimizer": {"muon": False}}
    document = {
        "name": "toy",
        "run_folder": str(tmp_path / "runs/toy"),
        "threads": 1,
        "model": {
            "hidden_size": 64, "intermediate_size": 160, "layers": ["conv", "attn", "conv"], "heads": 4, "kv_heads": 2,
            "head_dim": 16, "vocab_size": 500,
        },
        "stages": {
            "tokenizer": {},
            "pretrain": {"rows": 4, "row_length": 32, "training": {"steps": 10}},
            "sft": {"rows": 2, "row_length": 64, "training": training},
            "pairs": {},
            "dpo": {},
        },
    }  # fmt: skip
    return parse_recipe(document, stage_kinds())


def test_the_plan_adds_up(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "BUDGET_SECONDS", 0.2)
    threads = torch.get_num_threads()
    numbers = plan(recipe)
    assert torch.get_num_threads() == threads and numbers["machine"]["threads"] == 1
    assert numbers["machine"]["kernels"] == kernels.describe()
    # The vocabulary is rounded up to a multiple of 32, as the stages will.
    assert numbers["model"]["vocab_size"] == 512
    assert numbers["model"]["parameters"] == sum(p.numel() for p in Backbone(SMALL).parameters())
    tokenizer, pretrain, sft, pairs, dpo = numbers["stages"]
    assert (tokenizer["reason"], pairs["reason"]) == ("does not train", "does not train")
    assert "length of the model's own answers" in dpo["reason"]
    assert (pretrain["tokens"], sft["tokens"]) == (10 * 4 * 32, 7 * 2 * 64)
    for stage in (pretrain, sft):
        assert stage["flops_per_token"] == flops_per_token(SMALL, stage["row_length"] // 2)
        assert stage["seconds"] == stage["steps"] * stage["measured"]["seconds_per_step"] > 0
        assert stage["memory"]["peak"] > stage["memory"]["process"] > 0
    total = numbers["total"]
    assert total["seconds"] == pretrain["seconds"] + sft["seconds"]
    assert total["not_estimated"] == ["tokenizer", "pairs", "dpo"]
    assert not recipe.run_folder.exists()
    text = plan_text(numbers)
    assert f"{numbers['model']['parameters']:,} parameters" in text and kernels.describe() in text
    assert "not estimated: tokenizer, pairs, dpo" in text and "real training steps" in text


def test_a_recipe_that_does_not_train_has_a_plan_too(recipe: Recipe) -> None:
    bare = dataclasses.replace(recipe, stages={"tokenizer": recipe.stages["tokenizer"]})
    numbers = plan(bare)
    assert numbers["total"]["seconds"] == 0 and numbers["total"]["peak_bytes"] is None
    assert "not estimated: tokenizer" in plan_text(numbers)


@pytest.mark.parametrize("muon", [True, False])
def test_memory_is_what_the_optimiser_holds(muon: bool) -> None:
    model = Backbone(SMALL)
    model.initialise(0)
    optimizer = Optimizer(model, OptimizerSettings(muon=muon), compute_dtype(), model.matrices())
    held = training_memory(SMALL, 2, 16, muon)

    def size(tensors: Any) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    assert held["masters"] == size(optimizer.masters)
    assert held["optimiser"] == size([*optimizer.first, *optimizer.second.values()])
    next_token(model, batch_of(SMALL, 2, 16)).total.backward()
    assert held["gradients"] == size(p.grad for p in optimizer.parameters)
    if compute_dtype() != torch.float32:
        assert held["weights"] == size(optimizer.parameters)
    held_always = sum(held[name] for name in ("masters", "weights", "optimiser", "gradients"))
    assert held["peak"] == held_always + max(held["activations"] + held["logits"], held["update"])


@pytest.mark.parametrize("layers", [(CONV,) * 4, (ATTENTION,) * 4, (CONV, CONV, ATTENTION, CONV)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_activations_are_what_autograd_saves(layers: tuple[str, ...], dtype: torch.dtype) -> None:
    config = lfm2_config(512, 128, 352, layers, num_heads=4, num_kv_heads=2, head_dim=32)
    model = Backbone(config)
    model.initialise(0)
    model.to(dtype)
    batch = batch_of(config, 4, 64)
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    saved: dict[int, torch.Tensor] = {}  # keeps what it counts, so that no address is given out twice

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        next_token(model, batch)
    counted = sum(tensor.untyped_storage().nbytes() for tensor in saved.values())
    counted -= config.vocab_size * config.hidden_size * dtype.itemsize  # the head's gradient is listed with the logits
    fused = kernels.describe().startswith("fused")
    foretold = activation_bytes(config, 4 * 64, dtype.itemsize)
    assert foretold == pytest.approx(counted, rel=0.06 if fused else 0.3)


def test_more_rows_than_the_budget_allows_are_scaled_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_flops", lambda device: 1e9)
    per_row = flops_per_token(SMALL, 16) * 32
    budget = 5 * per_row * speed._OVERHEAD * speed._PASSES / 1e9
    found = speed.measure_step(SMALL, 50, 32, budget=budget)
    assert (found.method, found.measured_rows) == ("steps", 5) and found.repeats >= 1 and found.seconds > 0


def test_a_model_beyond_the_budget_or_the_memory_is_timed_by_its_products(monkeypatch: pytest.MonkeyPatch) -> None:
    held = speed.measure_step(SMALL, 4, 32, budget=20.0, real_steps=False)
    # Of a convolution layer, an attention layer, their feed-forward and the vocabulary.
    assert held.method == "products" and held.repeats == len(
        {(192, 64), (64, 64), (128, 64), (320, 64), (64, 160), (512, 64)}
    )
    monkeypatch.setattr(speed, "peak_flops", lambda device: 1.0)
    assert speed.measure_step(SMALL, 4, 32, budget=0.01).method == "products"


def test_time_from_products_is_their_flops_at_the_measured_rate(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        speed, "_product_seconds", lambda left, right: 2.0 * left.shape[0] * left.shape[1] * right.shape[1] / 1e9
    )
    found = speed.measure_step(SMALL, 4, 32, budget=100.0, real_steps=False)
    assert found.seconds == pytest.approx(4 * 32 * flops_per_token(SMALL, 16) / 1e9)
