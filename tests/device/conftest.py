"""Tiny random lfm2 checkpoints, made with transformers, and their GGUF files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import Lfm2Config, Lfm2ForCausalLM

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.device.gguf_export import GgufFile, export_gguf

TEXT = [
    "The harbour town of Vell lies on the river Anse; its 4,521 people mend nets and sell 17 kinds of fish.",
    "Ask the miller's daughter: she'll tell you that the road to Orrin isn't safe, and that we've gone far.",
    "Köln, naïve café, 東京は夜の七時, Привет мир, emoji 🐟🐠, tabs\tand\n\nnew lines.   Spaces too.",
] * 3


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
