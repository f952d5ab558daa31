from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants
from safetensors.numpy import load_file, save_file

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import GgufFile, export_gguf, gguf_metadata, plan_export
from minnow.errors import UserError
from minnow.files import read_json, write_json


def _fields(file: Path) -> dict[str, object]:
    return {name: field.contents() for name, field in GGUFReader(file).fields.items()}


def test_keys_read_back(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    fields = _fields(exported["F16"].file)
    config = read_json(checkpoint / "config.json")
    assert fields["general.architecture"] == "lfm2"
    assert fields["lfm2.block_count"] == 4
    assert fields["lfm2.embedding_length"] == config["hidden_size"]
    assert fields["lfm2.feed_forward_length"] == 96
    assert fields["lfm2.attention.head_count"] == 4
    assert fields["lfm2.attention.head_count_kv"] == [0, 2, 0, 0]
    assert fields["lfm2.shortconv.l_cache"] == 3
    assert fields["lfm2.context_length"] == 1024
    assert fields["lfm2.rope.freq_base"] == 1e6
    assert fields["tokenizer.ggml.pre"] == "lfm2"
    assert fields["tokenizer.ggml.add_bos_token"] is False
    assert [fields[f"tokenizer.ggml.{name}_token_id"] for name in ("padding", "bos", "eos")] == [0, 1, 7]
    assert fields["tokenizer.chat_template"] == (checkpoint / "chat_template.jinja").read_text()


def test_vocabulary_is_the_tokenizers(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    fields = _fields(exported["F16"].file)
    tokens, kinds = fields["tokenizer.ggml.tokens"], fields["tokenizer.ggml.token_type"]
    data = read_json(checkpoint / "tokenizer.json")
    size = Tokenizer.load(checkpoint).vocab_size
    assert size < len(tokens) == len(kinds) == 512  # type: ignore[arg-type]
    assert all(tokens[i] == token for token, i in data["model"]["vocab"].items())  # type: ignore[index]
    assert kinds[:14] == [3] * 14 and set(kinds[14:size]) == {1} and set(kinds[size:]) == {5}  # type: ignore[index]
    assert fields["tokenizer.ggml.merges"] == [" ".join(pair) for pair in data["model"]["merges"]]


def test_f32_file_holds_the_checkpoint_bit_for_bit(checkpoint: Path, exported: dict[str, GgufFile]) -> None:
    weights = load_file(checkpoint / "model.safetensors")
    stored = {t.name: t.data for t in GGUFReader(exported["F32"].file).tensors}
    assert len(stored) == len([name for name in weights if name != "lm_head.weight"])
    pairs = {
        "token_embd.weight": "model.embed_tokens.weight",
        "token_embd_norm.weight": "model.embedding_norm.weight",
        "blk.0.shortconv.conv.weight": "model.layers.0.conv.conv.weight",
        "blk.1.attn_output.weight": "model.layers.1.self_attn.out_proj.weight",
        "blk.3.ffn_gate.weight": "model.layers.3.feed_forward.w1.weight",
    }
    for name, source in pairs.items():
        np.testing.assert_array_equal(stored[name], weights[source].squeeze(), strict=False)


@pytest.mark.parametrize(("kind", "bound"), [("Q8_0", 0.5 / 127), ("Q4_0", 1 / 8)])
def test_quantised_matrices(checkpoint: Path, exported: dict[str, GgufFile], kind: str, bound: float) -> None:
    """Stored bytes equal the reference quantiser's; decoded, no weight is off by more than its step and an f16 scale allow."""
    weight = load_file(checkpoint / "model.safetensors")["model.layers.1.feed_forward.w1.weight"]
    tensor = next(t for t in GGUFReader(exported[kind].file).tensors if t.name == "blk.1.ffn_gate.weight")
    assert tensor.tensor_type.name == kind
    np.testing.assert_array_equal(tensor.data, quants.quantize(weight, tensor.tensor_type))
    decoded = quants.dequantize(tensor.data, tensor.tensor_type)
    block_peak = np.abs(weight.reshape(-1, 32)).max(axis=1, keepdims=True)
    assert (np.abs(decoded - weight).reshape(-1, 32) <= (bound + 2**-11) * block_peak).all()


def test_types_by_tensor(exported: dict[str, GgufFile]) -> None:
    kinds = exported["Q4_0"].tensors
    assert kinds["token_embd.weight"] == "Q8_0"
    assert kinds["blk.0.shortconv.in_proj.weight"] == "Q4_0"
    assert {kind for name, kind in kinds.items() if "norm" in name or name.endswith("conv.conv.weight")} == {"F32"}
    assert exported["Q4_0"].kept_f16 == ()
    sizes = [exported[kind].bytes for kind in ("Q4_0", "Q8_0", "F16", "F32")]
    assert sizes == sorted(sizes) and sizes[0] == exported["Q4_0"].file.stat().st_size


def test_odd_rows_stay_f16_and_are_named(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    odd = make_checkpoint(tmp_path / "odd", layer_types=("full_attention", "conv"), intermediate=80)
    result = export_gguf(odd, tmp_path / "odd.gguf", "Q4_0")
    assert result.kept_f16 == ("blk.0.ffn_down.weight", "blk.1.ffn_down.weight")
    assert {result.tensors[name] for name in result.kept_f16} == {"F16"}


def test_metadata(exported: dict[str, GgufFile], checkpoint: Path) -> None:
    count = sum(w.size for name, w in load_file(checkpoint / "model.safetensors").items() if name != "lm_head.weight")
    assert gguf_metadata(exported["Q4_0"].file) == {
        "architecture": "lfm2",
        "context_length": 1024,
        "vocab_size": 512,
        "eos_id": 7,
        "parameters": count,
        "type": "Q4_0",
    }


def test_refusals_leave_nothing_behind(make_checkpoint: Callable[..., Path], checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out" / "x.gguf"
    with pytest.raises(UserError, match="unknown GGUF type 'Q3'.*F16"):
        export_gguf(checkpoint, out, "Q3")
    with pytest.raises(UserError, match="no attention layer"):
        export_gguf(make_checkpoint(tmp_path / "conv", layer_types=("conv", "conv")), out)
    with pytest.raises(UserError, match="no convolution layer .* 'qwen3'"):  # llama.cpp aborts on such a file
        export_gguf(make_checkpoint(tmp_path / "attention", layer_types=("full_attention", "full_attention")), out)
    with pytest.raises(UserError, match="is not a checkpoint folder"):
        export_gguf(tmp_path / "nowhere", out)
    with pytest.raises(UserError, match="another checkpoint"):
        export_gguf(make_checkpoint(tmp_path / "wide", vocab_size=1024), out)
    with pytest.raises(UserError, match="another checkpoint"):
        export_gguf(make_checkpoint(tmp_path / "narrow", vocab_size=300), out)

    broken = tmp_path / "broken"
    shutil.copytree(checkpoint, broken)
    (broken / "model.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes()[:5000])
    with pytest.raises(UserError, match="damaged or cut short"):
        export_gguf(broken, out)
    (broken / "model.safetensors").unlink()
    with pytest.raises(UserError, match="holds no .safetensors file"):
        export_gguf(broken, out)
    shutil.copy(checkpoint / "model.safetensors", broken)
    write_json(broken / "config.json", read_json(broken / "config.json") | {"vocab_size": 500})
    with pytest.raises(UserError, match=r"embed_tokens.weight is \[512, 64\] and not \[500, 64\]"):
        export_gguf(broken, out)
    (broken / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(UserError, match="is a Unigram tokenizer"):
        export_gguf(broken, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_failed_write_keeps_the_earlier_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(checkpoint, file, "Q8_0")
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_padding", full)
    with pytest.raises(UserError, match="No space left"):
        export_gguf(checkpoint, file, "F16")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


@pytest.fixture(scope="module")
def wide(make_checkpoint: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that K-quants' blocks of 256 fit."""
    types = ("conv", "full_attention", "full_attention", "conv")
    return make_checkpoint(tmp_path_factory.mktemp("wide") / "model", types, hidden=256, intermediate=512)


@pytest.mark.parametrize(("kind", "bits"), [("Q4_K_M", 4), ("Q5_K_M", 5), ("Q6_K", 6)])
def test_k_quants(wide: Path, tmp_path: Path, kind: str, bits: int) -> None:
    """By llama.cpp's quantiser; the gguf package decodes them to within a step of the weights."""
    made = export_gguf(wide, tmp_path / "x.gguf", kind)
    plain = f"Q{bits}_K"
    assert made.tensors["blk.1.attn_q.weight"] == plain and made.tensors["token_embd.weight"] == "Q6_K"
    assert made.tensors["blk.3.ffn_down.weight"] == "Q6_K" and made.tensors["blk.1.ffn_down.weight"] == plain
    weight = load_file(wide / "model.safetensors")["model.layers.1.self_attn.q_proj.weight"]
    tensor = next(t for t in GGUFReader(made.file).tensors if t.name == "blk.1.attn_q.weight")
    error = np.abs(quants.dequantize(tensor.data, tensor.tensor_type) - weight)
    assert error.max() < 2.5 / 2**bits * np.abs(weight).max() and error.mean() < 2 / 2**bits * np.abs(weight).mean()
    assert gguf_metadata(made.file)["type"] == kind


def test_widths_that_blocks_do_not_fit_are_refused(
    make_checkpoint: Callable[..., Path], checkpoint: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"Q6_K holds weights in blocks of 256.*64 wide; choose Q4_0 or Q8_0"):
        plan_export(checkpoint, "Q4_K_M")
    with pytest.raises(UserError, match="blocks of 256"):
        plan_export(checkpoint, "Q8_0", "Q6_K")
    odd = make_checkpoint(tmp_path / "odd", ("conv", "full_attention"), hidden=48)
    with pytest.raises(UserError, match="Q8_0 holds weights in blocks of 32.*48 wide; choose F16"):
        plan_export(odd, "Q8_0")


def test_k_quants_without_a_quantiser_are_refused(wide: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("minnow.device.quantise._native", lambda: None)
    with pytest.raises(UserError, match=r'Q4_K_M is written by llama.cpp.*pip install "minnow\[export\]"'):
        plan_export(wide, "Q4_K_M")


def test_a_disk_without_room_is_said_before_anything_is_written(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_export(checkpoint, "F32")
    size = plan.write(tmp_path / "there.gguf").bytes
    assert size <= plan.bytes < 1.5 * size
    room = shutil.disk_usage(tmp_path)._replace(free=size - 1)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: room)
    with pytest.raises(UserError, match=r"take .* MB and .* has .* MB free"):
        export_gguf(checkpoint, tmp_path / "new" / "model.gguf", "F32")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(("value", "kind", "said"), [(np.nan, "Q4_0", "not finite"), (7e4, "F16", "too large for F16")])
def test_weights_that_a_type_cannot_hold_are_refused(
    checkpoint: Path, tmp_path: Path, value: float, kind: str, said: str
) -> None:
    folder = shutil.copytree(checkpoint, tmp_path / "model")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.feed_forward.w1.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"ffn_gate.weight holds .*{said}"):
        export_gguf(folder, tmp_path / "x.gguf", kind)
    assert not (tmp_path / "x.gguf").exists()
