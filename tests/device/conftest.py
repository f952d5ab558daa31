"""Tiny random lfm2 checkpoints, made with transformers, and their GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import Lfm2Config, Lfm2ForCausalLM

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.device.gguf_export import GgufFile, export_gguf

TEXT = [
    "The harbour town of Vell lies on the river Anse; its 4,521 people mend nets and sell 17 kinds of fish.",
    "Ask the miller's daughter: she'll tell you that the road to Orrin isn't safe, and that we've gone far.",
    "Köln, naïve café, 東京は夜の七時, Привет мир, emoji 🐟🐠, tabs\tand\n\nnew lines.   Spaces too.",
] * 3


_ROPE = {
    "rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}  # fmt: skip
# Shapes that tell mistakes apart: heads wider than the stream's share, more value than key heads, a pattern of windows
# of its own, scores scaled by another number than llama.cpp's.
_SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "lfm2_moe": (
        "Lfm2Moe",
        {
            "layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "num_dense_layers": 1,
            "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64, "routed_scaling_factor": 1.5,
        },
    ),
    "llama": ("Llama", {"num_hidden_layers": 2, "head_dim": 32, "rope_parameters": _ROPE}),
    "qwen3": ("Qwen3", {"num_hidden_layers": 2, "head_dim": 32, "tie_word_embeddings": False}),
    "gemma3_text": (
        "Gemma3Text",
        {
            "num_hidden_layers": 3, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "head_dim": 32, "sliding_window": 16, "query_pre_attn_scalar": 300, "final_logit_softcapping": 20.0,
        },
    ),
    "qwen3_5_text": (
        "Qwen3_5Text",
        {
            "num_hidden_layers": 3, "layer_types": ["linear_attention", "full_attention", "linear_attention"],
            "head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
        },
    ),
}  # fmt: skip


def _write(family: str, folder: Path, tokenizer: Tokenizer) -> Path:
    tokenizer.save(folder)
    torch.manual_seed(0)
    name, shape = _SHAPES[family]
    settings = {
        "vocab_size": 448, "hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 1024, "initializer_range": 0.1, "bos_token_id": 1,
        "eos_token_id": 7, "pad_token_id": 0, "tie_word_embeddings": True,
    }  # fmt: skip
    network = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(
        getattr(transformers, f"{name}Config")(**settings | shape)
    )
    for part, tensor in [*network.named_parameters(), *network.named_buffers()]:
        if (tensor.dim() == 1 and "A_log" not in part) or "expert_bias" in part:
            tensor.data.add_(0.2 * torch.randn_like(tensor))
    network.save_pretrained(folder)
    return folder


def _make(
    folder: Path,
    layer_types: tuple[str, ...] = ("conv", "full_attention", "conv", "conv"),
    hidden: int = 64,
    intermediate: int = 96,
    vocab_size: int = 512,
) -> Path:
    """Weights are drawn large (seed 0), so that first and second choice are seldom near ties."""
    folder.mkdir(parents=True)
    tokenizer = train_tokenizer(TEXT, 420)
    tokenizer.save(folder)
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=intermediate,
        block_auto_adjust_ff_dim=False,
        num_hidden_layers=len(layer_types),
        layer_types=list(layer_types),
        num_attention_heads=hidden // 16,
        num_key_value_heads=hidden // 32,
        max_position_embeddings=1024,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_id,
        eos_token_id=tokenizer.eos_id,
        pad_token_id=tokenizer.pad_id,
    )
    Lfm2ForCausalLM(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_tokenizer(TEXT, 420)


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Path]:
    return _make


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _make(tmp_path_factory.mktemp("device") / "tiny")


@pytest.fixture(scope="session")
def exported(checkpoint: Path) -> dict[str, GgufFile]:
    """One file of each type."""
    kinds = ("F32", "F16", "BF16", "Q8_0", "Q4_0")
    return {kind: export_gguf(checkpoint, checkpoint.parent / f"tiny-{kind}.gguf", kind) for kind in kinds}


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> dict[str, Path]:
    return {family: _write(family, tmp_path_factory.mktemp(family), tokenizer) for family in _SHAPES}
