"""Bytes against the gguf package's own sizes and against llama.cpp, measured."""

from __future__ import annotations

from dataclasses import replace

import pytest
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

from minnow.model.config import Attention, Dense, LayerConfig, ModelConfig, Rope, ShortConv
from minnow.model.footprint import (
    WEIGHT_TYPES,
    Repack,
    decode_bytes,
    file_bytes,
    largest_context,
    peak_memory,
    repacked_bytes,
    state_bytes,
    tensor_type,
)
from minnow.model.inventory import tensors
from minnow.model.presets import PRESETS


def layout(hidden: int, width: int, vocab: int) -> ModelConfig:
    """The layers of LFM2-350M with other widths."""
    attention = Attention(hidden // 64, 8, 64, Rope(1e6))
    mixers = [attention if index in (2, 5, 8, 10, 12, 14) else ShortConv() for index in range(16)]
    return ModelConfig("lfm2", vocab, hidden, tuple(LayerConfig(mixer, Dense(width)) for mixer in mixers))


@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-8b-a1b", "qwen3.5-0.8b", "gemma-3-270m"])
@pytest.mark.parametrize("kind", WEIGHT_TYPES)
def test_file_bytes_are_those_of_the_gguf_package(name: str, kind: str) -> None:
    size = 0
    for tensor in tensors(PRESETS[name]):
        block, stored = GGML_QUANT_SIZES[GGMLQuantizationType[tensor_type(tensor, kind)]]
        assert tensor.columns % block == 0
        size += tensor.parameters // block * stored
    assert file_bytes(PRESETS[name], kind) == size


def test_the_head_of_a_small_file_stays_q8_0_and_odd_rows_f16() -> None:
    tied = layout(1024, 4608, 4096)
    untied = replace(tied, tied=False)
    odd = layout(1024, 80, 4096)

    def kinds(config: ModelConfig) -> dict[str, str]:
        return {f"{each.part} {each.rows}x{each.columns}": tensor_type(each, "Q4_0") for each in tensors(config)}

    assert kinds(tied)["embedding 4096x1024"] == "Q8_0"
    assert kinds(untied)["embedding 4096x1024"] == "Q4_0" and kinds(untied)["head 4096x1024"] == "Q8_0"
    assert kinds(odd)["mlp 1024x80"] == "F16" and kinds(odd)["mlp 80x1024"] == "Q4_0"
    assert kinds(tied)["conv 1024x3"] == kinds(tied)["norms 1x1024"] == "F32"


# Measured: llama.cpp 11549 (AVX2 wheel), random weights, as many merges as tokens; megabytes of VmHWM after a prompt
# of 500 tokens (3,500 at 4,096 of the small shape), less the worker's before it loaded the file.
MEASURED = [
    (layout(1024, 4608, 65_536), "Q8_0", 512, 453.5),
    (layout(1024, 4608, 65_536), "Q8_0", 4096, 501.1),
    (layout(1024, 4608, 65_536), "Q4_0", 512, 461.0),
    (layout(1024, 4608, 65_536), "Q4_0", 16_384, 671.9),
    (layout(1024, 4608, 65_536), "BF16", 512, 790.3),
    (layout(512, 1536, 65_536), "Q8_0", 512, 148.9),
    (layout(512, 1536, 65_536), "Q8_0", 4096, 195.8),
    (layout(512, 1536, 65_536), "Q4_0", 512, 150.3),
    (layout(512, 1536, 16_384), "Q8_0", 512, 102.6),
    (layout(512, 1536, 262_144), "Q8_0", 512, 336.4),
]


@pytest.mark.parametrize(("config", "kind", "context", "megabytes"), MEASURED)
def test_the_peak_is_within_three_percent_of_llama_cpp(
    config: ModelConfig, kind: str, context: int, megabytes: float
) -> None:
    assert peak_memory(config, kind, context)["total"] == pytest.approx(megabytes * 1e6, rel=0.03)


def test_the_parts_of_the_peak_are_llama_cpps_own_buffers() -> None:
    """What it logged for the 350M shape: KV 6 MiB at 512, RS 0.08 MiB, CPU_REPACK 154.12 MiB."""
    peak = peak_memory(layout(1024, 4608, 65_536), "Q4_0", 512)
    assert peak["state"] == 6 * 2**20 + 10 * 2 * 1024 * 4
    assert round(peak["repacked"] / 2**20, 2) == 154.12


def test_arm_holds_q8_0_and_the_head_twice_and_no_repack_nothing() -> None:
    config = PRESETS["lfm2-350m"]
    head = 65_536 * 1024 // 32 * 34
    assert repacked_bytes(config, "Q4_0", "arm") == repacked_bytes(config, "Q4_0", "x86") + head
    assert repacked_bytes(config, "Q8_0", "x86") == 0
    matrices = sum(tensor.parameters for tensor in tensors(config) if tensor.role in ("matrix", "tied"))
    assert repacked_bytes(config, "Q8_0", "arm") == matrices // 32 * 34
    for kind in WEIGHT_TYPES:
        assert repacked_bytes(config, kind, "none") == repacked_bytes(config, "BF16", "arm") == 0


def test_a_decoded_token_reads_each_active_weight_once_and_the_state() -> None:
    dense = PRESETS["lfm2-350m"]
    reads = decode_bytes(dense, "Q8_0", 1000)
    assert reads["weights"] == file_bytes(dense, "Q8_0")
    assert reads["state"] == sum(state_bytes(dense, 1000).values()) == 40_960 + 12_288 * 1000
    # Of 32 experts four are read; of an embedding that is no head, one row.
    sparse = PRESETS["lfm2-8b-a1b"]
    idle = 7_751_073_792 * 28 // 32
    assert file_bytes(sparse, "BF16") - decode_bytes(sparse, "BF16", 1)["weights"] == 2 * idle
    untied = replace(dense, tied=False)
    assert file_bytes(untied, "BF16") - decode_bytes(untied, "BF16", 1)["weights"] == 2 * (65_536 - 1) * 1024


@pytest.mark.parametrize("repack", ["x86", "arm", "none"])
@pytest.mark.parametrize("name", ["lfm2-350m", "gemma-3-270m", "qwen3.5-0.8b", "qwen3-0.6b"])
def test_the_largest_context_fits_and_one_more_does_not(name: str, repack: Repack) -> None:
    config, budget = PRESETS[name], 900_000_000
    for kind in WEIGHT_TYPES:
        most = largest_context(config, kind, budget, repack)
        assert most == 0 or peak_memory(config, kind, most, repack)["total"] <= budget
        if most < config.max_positions:
            assert peak_memory(config, kind, most + 1, repack)["total"] > budget
