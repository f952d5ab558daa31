"""Adapters in both directions against peft: the same logits from the same folders."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.model.adapter import Adapter, adaptable, load_adapter, merge, save_adapter
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, load_model, save_checkpoint

TOKENS = torch.tensor([[20, 33, 41, 57, 62, 14, 19]])
LFM2_TARGETS = ["q_proj", "k_proj", "v_proj", "out_proj", "in_proj", "w1", "w2", "w3"]
WITHOUT_PEFT = "the reference is peft: pip install peft"


@pytest.fixture
def base(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> Path:
    save_checkpoint(tiny_model, words, tmp_path / "base")
    return tmp_path / "base"


def drawn(model: Any, rank: int = 3, only: str = "") -> Adapter:
    """Factors for every linear map whose checkpoint name contains ``only``, none of them zero."""
    generator = torch.Generator().manual_seed(1)
    weights = dict(model.named_parameters())
    factors = {}
    for slot in adaptable(model):
        for name, part in zip(slot.theirs, slot.split(weights[slot.ours]), strict=True):
            if only in name:
                rows, columns = part.shape
                a, b = torch.randn(rank, columns, generator=generator), torch.randn(rows, rank, generator=generator)
                factors[name] = (0.1 * a, 0.1 * b)
    return Adapter(6.0, factors)


def transformers_logits(base: Path, adapter: Path) -> Tensor:
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", reason=WITHOUT_PEFT)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    return peft.PeftModel.from_pretrained(plain, adapter)(TOKENS).logits.detach()


def logits(model: Any) -> Tensor:
    return model.logits(model(TOKENS)).detach()


@pytest.mark.parametrize("only", ["", "q_proj", "w3", ".conv."])
def test_peft_opens_what_is_saved_here(base: Path, tmp_path: Path, only: str) -> None:
    model = load_model(base)
    adapter = drawn(model, only=only)
    save_adapter(tmp_path / "adapter", adapter, str(base))
    before = logits(model)
    merge(model, adapter)
    assert not torch.allclose(before, logits(model), atol=1e-2)
    torch.testing.assert_close(transformers_logits(base, tmp_path / "adapter"), logits(model), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [
        {"r": 4, "lora_alpha": 8, "target_modules": LFM2_TARGETS},
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "w2"], "use_rslora": True},
        {"r": 4, "lora_alpha": 16, "target_modules": "all-linear"},
    ],
    ids=["lfm2", "rslora", "all"],
)
def test_what_peft_saves_opens_here(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    from transformers import AutoModelForCausalLM

    peft = pytest.importorskip("peft", reason=WITHOUT_PEFT)
    torch.manual_seed(0)
    plain = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = peft.get_peft_model(plain, peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **settings))
    adapted.save_pretrained(tmp_path / "adapter")
    model, words = load_checkpoint(tmp_path / "adapter")
    torch.testing.assert_close(logits(model), adapted(TOKENS).logits.detach(), atol=1e-4, rtol=1e-4)
    assert words.vocab_size <= model.config.vocab_size


def test_a_foreign_model_takes_adapters_too(tmp_path: Path) -> None:
    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    peft = pytest.importorskip("peft", reason=WITHOUT_PEFT)
    torch.manual_seed(0)
    shape = {"vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    plain = GPTNeoXForCausalLM(GPTNeoXConfig(**shape, num_attention_heads=4, max_position_embeddings=64))
    plain.save_pretrained(tmp_path / "base")
    settings = peft.LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, target_modules=["query_key_value"])
    adapted = peft.get_peft_model(plain.eval(), settings)
    adapted.base_model.model.config._name_or_path = str(tmp_path / "base")
    adapted.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    adapted.save_pretrained(tmp_path / "adapter")
    model = load_model(tmp_path / "adapter")
    torch.testing.assert_close(logits(model), adapted(TOKENS).logits.detach(), atol=1e-4, rtol=1e-4)
    save_adapter(tmp_path / "again", drawn(model), str(tmp_path / "base"))
    assert transformers_logits(tmp_path / "base", tmp_path / "again").isfinite().all()


def edited(folder: Path, **changes: Any) -> Path:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))
    return folder


@pytest.fixture
def saved(base: Path, tmp_path: Path) -> Path:
    save_adapter(tmp_path / "adapter", drawn(load_model(base)), str(base))
    return tmp_path / "adapter"


def test_a_base_that_is_elsewhere_is_named(saved: Path) -> None:
    with pytest.raises(UserError, match="base model 'org/unknown', which is not a folder"):
        load_model(edited(saved, base_model_name_or_path="org/unknown"))


@pytest.mark.parametrize("change", [{"use_dora": True}, {"bias": "all"}, {"modules_to_save": ["lm_head"]}])
def test_what_is_more_than_low_rank_is_refused(saved: Path, change: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=f"has {next(iter(change))}.*merge it with peft"):
        load_adapter(edited(saved, **change))


def test_damaged_and_incomplete_folders_are_named(saved: Path) -> None:
    weights = saved / "adapter_model.safetensors"
    tensors = load_file(weights)
    lone = next(name for name in tensors if "lora_A" in name)
    save_file({lone: tensors[lone]}, weights)
    with pytest.raises(UserError, match="lacks.*lora_B"):
        load_adapter(saved)
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(UserError, match="damaged or cut short"):
        load_adapter(saved)
    weights.unlink()
    with pytest.raises(UserError, match="lacks adapter_model.safetensors"):
        load_adapter(saved)


def test_an_adapter_of_another_model_is_refused(base: Path, make_model: Callable[..., Backbone]) -> None:
    model = load_model(base)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(UserError, match=r"of shape \(\d+, 128\), and the model has \(\d+, 64\)"):
        merge(model, drawn(make_model(hidden_size=128, head_dim=32)))
    with pytest.raises(UserError, match="has no such linear map"):
        merge(model, Adapter(1.0, {"model.layers.9.w1.weight": (torch.ones(1, 64), torch.ones(96, 1))}))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
