"""Random files hold the tensors that llama.cpp asks for, at the size that the footprint foretells."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from gguf import GGUFReader

from minnow.data.tokenizer import Tokenizer
from minnow.device.bench import Bench
from minnow.device.gguf_export import gguf_metadata, plan_export
from minnow.device.random_gguf import write_random_gguf
from minnow.errors import UserError
from minnow.model.accounting import parameter_parts
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.model.config import Attention, Dense, GatedDelta, LayerConfig, ModelConfig, Rope, ShortConv
from minnow.model.footprint import file_bytes

ATTENTION = Attention(4, 2, 32, Rope(1e6))


def shape(family: str, *mixers: Attention | ShortConv | GatedDelta, **more: object) -> ModelConfig:
    forward = Dense(256, "gelu") if family == "gemma3_text" else Dense(256)
    layers = tuple(LayerConfig(mixer, forward) for mixer in mixers)
    return ModelConfig(family, 512, 128, layers, max_positions=1024, **more)  # type: ignore[arg-type]


SHAPES = [
    shape("lfm2", ShortConv(), ATTENTION, ShortConv()),
    shape("llama", *[replace(ATTENTION, qk_norm=False)] * 2, tied=False),
    shape("qwen3", ATTENTION, ATTENTION),
    shape(
        "gemma3_text",
        *[replace(ATTENTION, window=64)] * 5,
        ATTENTION,
        sandwich=True,
        norm_offset=True,
        embedding_scale=128**0.5,
    ),
    shape(
        "qwen3_5_text",
        *[GatedDelta(2, 4, 32, 32)] * 3,
        Attention(4, 2, 64, Rope(1e7, share=0.5), output_gate="element"),
        norm_offset=True,
    ),
]


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.family)
def test_every_family_runs(config: ModelConfig, tmp_path: Path) -> None:
    file = tmp_path / "random.gguf"
    size = write_random_gguf(config, file, "Q4_0")
    assert size == file.stat().st_size
    facts = gguf_metadata(file)
    assert facts["parameters"] == sum(parameter_parts(config).values())
    assert file_bytes(config, "Q4_0") < size < file_bytes(config, "Q4_0") + 60 * config.vocab_size + 20_000
    with Bench("llama.cpp", file, 64, 1) as bench:
        assert bench.run(16, 4).ttft_ms > 0
        # llama.cpp's own count: what lies before its first and after its last tensor that it does not rearrange is not
        # mapped for long.
        assert 0.6 * file_bytes(config, "Q4_0") < bench.memory()["weights"] <= file_bytes(config, "Q4_0") + 20_000


@pytest.mark.parametrize("config", SHAPES, ids=lambda config: config.family)
def test_tensors_are_those_of_an_export(config: ModelConfig, tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = Backbone(config)
    model.initialise(0)
    save_checkpoint(model, tokenizer, tmp_path / "model")
    made = plan_export(tmp_path / "model", "Q4_0").write(tmp_path / "made.gguf")
    write_random_gguf(config, tmp_path / "random.gguf", "Q4_0")
    found = {tensor.name: tensor for tensor in GGUFReader(tmp_path / "random.gguf").tensors}
    assert {name: tensor.tensor_type.name for name, tensor in found.items()} == made.tensors
    for tensor in GGUFReader(made.file).tensors:
        assert found[tensor.name].shape.tolist() == tensor.shape.tolist()


@pytest.mark.parametrize("kind", ["F16", "BF16", "Q8_0"])
def test_every_type_is_finite(kind: str, tmp_path: Path) -> None:
    from minnow.device.llama_cpp import LlamaCpp

    write_random_gguf(SHAPES[0], tmp_path / "random.gguf", kind)
    with LlamaCpp(tmp_path / "random.gguf", 64) as llama:
        scores = llama.score(list(range(1, 20)))
    assert (scores.next_log_prob < 0).all() and (scores.next_log_prob > -50).all()


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least one attention layer"):
        write_random_gguf(shape("lfm2", ShortConv()), tmp_path / "x.gguf")
    with pytest.raises(UserError, match="cannot be written as 'Q4_K_M'"):
        write_random_gguf(SHAPES[0], tmp_path / "x.gguf", "Q4_K_M")
    assert not list(tmp_path.iterdir())
