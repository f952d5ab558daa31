from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, quants
from safetensors.numpy import load_file

from minnow.data.tokenizer import Tokenizer
from minnow.device.gguf_export import GgufFile, export_gguf, gguf_metadata
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
    with pytest.raises(UserError, match="holds no lfm2 weights"):
        export_gguf(broken, out)
    shutil.copy(checkpoint / "model.safetensors", broken)
    write_json(broken / "config.json", read_json(broken / "config.json") | {"vocab_size": 500})
    with pytest.raises(UserError, match="vocab_size 500 but the embedding has 512 rows"):
        export_gguf(broken, out)
    (broken / "tokenizer.json").write_text(json.dumps({"model": {"type": "Unigram"}}))
    with pytest.raises(UserError, match="not a byte-level BPE"):
        export_gguf(broken, out)
    assert not out.parent.exists() or not list(out.parent.iterdir())


def test_failed_write_keeps_the_earlier_file(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "model.gguf"
    export_gguf(checkpoint, file, "Q8_0")
    before = file.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("gguf.GGUFWriter.write_tensors_to_file", full)
    with pytest.raises(UserError, match="No space left"):
        export_gguf(checkpoint, file, "F16")
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]
