"""The GGUF file of a tiny random model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from minnow.data.tokenizer import Tokenizer
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.config import ATTENTION, CONV
from minnow.model.families.lfm2 import lfm2_config


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    """Its checkpoint, with the pocket world's tokenizer."""
    config = lfm2_config(
        vocab_size=words.vocab_size, layer_types=(CONV, ATTENTION), max_positions=1024, hidden_size=64,
        intermediate_size=96, num_heads=4, num_kv_heads=2, head_dim=16,
    )  # fmt: skip
    model = Backbone(config)
    model.initialise(0)
    with torch.no_grad():
        model.embedding[:270] = (
            0  # special tokens and single bytes, half characters among them, are never the likeliest
        )
        model.embedding.mul_(3)
    path = tmp_path_factory.mktemp("serve") / "tiny"
    save_checkpoint(model, words, path)
    return path


@pytest.fixture(scope="session")
def gguf(folder: Path) -> Path:
    pytest.importorskip("gguf")
    pytest.importorskip("xllamacpp")
    from minnow.device.gguf_export import export_gguf

    return export_gguf(folder, folder.parent / "tiny-F16.gguf", "F16").file
