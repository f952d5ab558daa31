"""Every family that is exported, against transformers: tiny random networks, teacher-forced under llama.cpp."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from minnow.device.gguf_export import export_gguf, plan_export
from minnow.device.parity import check_parity
from minnow.errors import UserError
from minnow.files import read_json, write_json


@pytest.mark.parametrize("family", ["lfm2_moe", "llama", "qwen3", "gemma3_text", "qwen3_5_text"])
def test_file_says_what_transformers_says(folders: dict[str, Path], family: str, tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    sequences = [[1, *random.integers(14, 420, size=n).tolist()] for n in (60, 150)]  # past window and rope's stretch
    files = [export_gguf(folders[family], tmp_path / f"{kind}.gguf", kind).file for kind in ("F32", "F16")]
    f32, f16 = check_parity(folders[family], files, sequences)
    assert f32.agree + f32.near_ties >= f32.positions - 1 and f32.mean_kl < 2e-6
    assert f16.mean_kl < 1e-4


def test_a_type_of_its_own_for_embedding_and_head(folders: dict[str, Path], tmp_path: Path) -> None:
    file = export_gguf(folders["qwen3"], tmp_path / "x.gguf", "Q4_0", "F16").file
    kinds = {tensor.name: tensor.tensor_type.name for tensor in GGUFReader(file).tensors}
    assert kinds["token_embd.weight"] == kinds["output.weight"] == "F16"
    plain = export_gguf(folders["qwen3"], tmp_path / "x.gguf", "Q4_0").tensors
    assert (plain["token_embd.weight"], plain["output.weight"]) == ("Q4_0", "Q8_0")  # only the head is read whole
    assert kinds["blk.0.attn_q.weight"] == "Q4_0" and kinds["blk.0.attn_q_norm.weight"] == "F32"


def test_experts_and_routers(folders: dict[str, Path], tmp_path: Path) -> None:
    file = export_gguf(folders["lfm2_moe"], tmp_path / "x.gguf", "Q4_0").file
    tensors = {tensor.name: tensor for tensor in GGUFReader(file).tensors}
    assert tensors["blk.1.ffn_down_exps.weight"].shape.tolist() == [64, 64, 4]
    assert tensors["blk.1.ffn_gate_inp.weight"].tensor_type.name == "F32"


@pytest.mark.parametrize(
    ("family", "change", "said"),
    [
        ("qwen3", {"model_type": "lfm3"}, "'lfm3' model.*does not read it yet"),
        ("qwen3", {"model_type": "gpt2"}, "'gpt2' model and.*convert_hf_to_gguf.py"),
        (
            "qwen3",
            {"use_sliding_window": True, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
            "sliding windows",
        ),
        ("gemma3_text", {"attn_logit_softcapping": 30.0}, "attention scores are soft-capped"),
        ("lfm2_moe", {"norm_topk_prob": False}, "experts are not normalised"),
        ("qwen3_5_text", {"linear_key_head_dim": 32}, "keys are 32 wide and their values 16"),
        ("llama", {"head_dim": 16}, r"q_proj.weight is \[128, 64\] and not \[64, 64\]"),
    ],
)
def test_what_llama_cpp_does_not_compute_is_refused(
    folders: dict[str, Path], tmp_path: Path, family: str, change: dict[str, Any], said: str
) -> None:
    for file in folders[family].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = read_json(tmp_path / "config.json")
    write_json(tmp_path / "config.json", config | change)
    with pytest.raises(UserError, match=said):
        plan_export(tmp_path, "F16")
