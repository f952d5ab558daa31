"""Checkpoints travel to transformers and back, and a bad folder is told in one sentence."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Lfm2Config, Lfm2ForCausalLM

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.model import checkpoint as checkpoint_module
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, load_model, save_checkpoint
from minnow.model.config import ModelConfig
from minnow.tasks import PocketWorld

TOKENS = torch.arange(14, 54).view(2, 20)


def logits(model: Backbone) -> torch.Tensor:
    return (model(TOKENS) @ model.head.T).detach()


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> Path:
    save_checkpoint(tiny_model, words, tmp_path / "checkpoint")
    return tmp_path / "checkpoint"


def edit_config(folder: Path, **values: object) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_transformers_opens_what_was_saved(
    folder: Path, tiny_model: Backbone, words: Tokenizer, pocket: PocketWorld
) -> None:
    theirs, report = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert type(theirs) is Lfm2ForCausalLM and theirs.dtype == torch.float32
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(theirs(TOKENS).logits, logits(tiny_model), atol=1e-4, rtol=1e-4)
    assert theirs.generation_config.eos_token_id == words.eos_id

    tokenizer = AutoTokenizer.from_pretrained(folder)
    example = pocket.examples("search", "train", 1)[0]
    assert tokenizer("Twelve 1234 towns.", add_special_tokens=False).input_ids == words.encode("Twelve 1234 towns.")
    rendered = tokenizer.apply_chat_template(
        example.messages, tools=example.tools, add_generation_prompt=True, tokenize=True, return_dict=False
    )
    assert rendered == words.prompt(example.messages, example.tools)


def test_what_was_saved_loads_bit_for_bit(folder: Path, tiny_model: Backbone, words: Tokenizer) -> None:
    model, tokenizer = load_checkpoint(folder)
    assert model.config == tiny_model.config and tokenizer.digest == words.digest
    for name, tensor in tiny_model.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor)
    assert load_model(folder, torch.bfloat16).head.dtype == torch.bfloat16


def test_master_weights_are_saved_in_place_of_the_models_own(
    tmp_path: Path, tiny_model: Backbone, words: Tokenizer
) -> None:
    masters = {name: tensor.clone() for name, tensor in tiny_model.state_dict().items()}
    save_checkpoint(tiny_model.bfloat16(), words, tmp_path / "checkpoint", masters)
    assert all(torch.equal(masters[name], t) for name, t in load_model(tmp_path / "checkpoint").state_dict().items())


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize(
    "form",
    [
        {"block_auto_adjust_ff_dim": False},
        {"block_auto_adjust_ff_dim": True, "block_multiple_of": 32},
        {"block_auto_adjust_ff_dim": True, "block_multiple_of": 32, "block_ffn_dim_multiplier": 1.3},
    ],
    ids=["as it is", "adjusted", "multiplied"],
)
def test_opens_what_transformers_saved(tmp_path: Path, words: Tokenizer, form: dict, sharded: bool) -> None:
    torch.manual_seed(0)
    config = Lfm2Config(
        vocab_size=512, hidden_size=64, intermediate_size=100, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, layer_types=["conv", "full_attention", "conv"], conv_L_cache=4, initializer_range=0.2,
        rope_parameters={"rope_type": "default", "rope_theta": 5000.0}, norm_eps=1e-3, eos_token_id=7, **form,
    )  # fmt: skip
    theirs = Lfm2ForCausalLM(config).eval()
    theirs.save_pretrained(tmp_path / "hf", max_shard_size="100KB" if sharded else "5GB")
    words.save(tmp_path / "hf")
    assert (len(list((tmp_path / "hf").glob("*.safetensors"))) > 1) == sharded
    model, _ = load_checkpoint(tmp_path / "hf")
    torch.testing.assert_close(logits(model), theirs(TOKENS).logits.detach(), atol=1e-4, rtol=1e-4)


def test_the_published_config_is_read() -> None:
    """LFM2-350M's config.json in the older form, with the width that its own code halves by a third."""
    config = ModelConfig.from_hf(
        {
            "model_type": "lfm2", "vocab_size": 65536, "hidden_size": 1024, "block_ff_dim": 6656,
            "block_auto_adjust_ff_dim": True, "block_ffn_dim_multiplier": 1.0, "block_multiple_of": 256,
            "num_hidden_layers": 16, "full_attn_idxs": [2, 5, 8, 10, 12, 14], "num_attention_heads": 16,
            "num_key_value_heads": 8, "conv_L_cache": 3, "conv_bias": False, "norm_eps": 1e-5, "rope_theta": 1e6,
            "max_position_embeddings": 128000, "eos_token_id": [7, 2], "bos_token_id": 1, "pad_token_id": 0,
            "tie_embedding": True,
        }
    )  # fmt: skip
    from minnow.model.presets import PRESETS

    assert config == PRESETS["lfm2-350m"]


def test_token_ids_of_zero_are_kept() -> None:
    config = {"model_type": "lfm2", **_SHAPE, "bos_token_id": 0, "pad_token_id": 3}
    assert (ModelConfig.from_hf(config).bos_id, ModelConfig.from_hf(config).pad_id) == (0, 3)


_SHAPE = {
    "vocab_size": 512, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "full_attn_idxs": [1],
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "lfm22"}, "did you mean 'lfm2'"),
        ({"model_type": "gpt_neox"}, "'gpt_neox', which Minnow's backbone does not read; convert"),
        ({"conv_bias": True}, "conv_bias"),
        ({"tie_word_embeddings": False}, "tied"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e6}}, "yarn"),
        ({"hidden_size": None}, "not a complete"),
        ({"num_attention_heads": 0}, "not a complete"),
        ({"layer_types": ["conv", "sliding_attention"]}, "sliding_attention"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_other_models_are_refused(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        ModelConfig.from_hf({"model_type": "lfm2", **_SHAPE, **change})


def test_a_config_that_lacks_a_number_names_it() -> None:
    with pytest.raises(UserError, match="num_attention_heads"):
        ModelConfig.from_hf({"model_type": "lfm2", **{k: v for k, v in _SHAPE.items() if k != "num_attention_heads"}})


def drop(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def drop_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.self_attn.k_proj.weight"]
    save_file(weights, folder / "model.safetensors")


def other_tokenizer(folder: Path) -> None:
    train_tokenizer(PocketWorld(0, 200).documents(300), 560).save(folder)


def config_is_a_list(folder: Path) -> None:
    (folder / "config.json").write_text("[1, 2]")


def pickled(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shard(folder: Path, keep: bool) -> None:
    """The folder's tensors in two files and an index; without ``keep`` the second file is lost."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    places = {name: names[i % 2] for i, name in enumerate(weights)}
    for file in names[: 2 if keep else 1]:
        save_file({name: tensor for name, tensor in weights.items() if places[name] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


DAMAGE = {
    "no folder": (shutil.rmtree, "not a checkpoint folder"),
    "no config": (drop("config.json"), "config.json does not exist"),
    "no weights": (drop("model.safetensors"), "no .safetensors"),
    "no tokenizer": (drop("tokenizer.json"), "no tokenizer.json"),
    "cut short": (truncate, "damaged or cut short"),
    "empty file": (lambda folder: (folder / "model.safetensors").write_bytes(b""), "damaged or cut short"),
    "a tensor gone": (drop_tensor, "k_proj"),
    "other tokenizer": (other_tokenizer, "belongs to another checkpoint"),
    "other model type": (lambda folder: edit_config(folder, model_type="qwen"), "did you mean 'qwen3'"),
    "another family's config": (lambda folder: edit_config(folder, model_type="qwen3"), "it lacks model.norm.weight"),
    "config not an object": (config_is_a_list, "list"),
    "wider config": (
        lambda folder: edit_config(folder, hidden_size=128, block_dim=128),
        "do not fit config.json .model.embed_tokens.weight is .*64. and not .*128.",
    ),
    "only a pickle": (pickled, "runs whatever code is in it"),
    "a shard gone": (lambda folder: shard(folder, keep=False), "00002.safetensors is missing"),
    "an index without files": (lambda folder: (folder / "model.safetensors.index.json").write_text("{}"), "weight_map"),
    "fewer layers in the config": (
        lambda folder: edit_config(folder, layer_types=["conv", "full_attention"], num_hidden_layers=2),
        "no place for model.layers.2",
    ),
    "another mixer in the config": (lambda folder: edit_config(folder, layer_types=["conv"] * 3), "do not fit"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_bad_folder_is_one_clear_sentence(folder: Path, damage: str) -> None:
    harm, named = DAMAGE[damage]
    harm(folder)
    with pytest.raises(UserError, match=named) as caught:
        load_checkpoint(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("moment", ["weights", "tokenizer"])
def test_a_full_disk_leaves_the_earlier_checkpoint_whole(
    folder: Path,
    words: Tokenizer,
    make_model: Callable[..., Backbone],
    moment: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}

    def full(*args: object, **kwargs: object) -> None:
        if moment == "weights":
            raise checkpoint_module.SafetensorError("I/O error: No space left on device (os error 28)")
        raise OSError(28, "No space left on device")

    target = (checkpoint_module, "save_file") if moment == "weights" else (words, "save")
    monkeypatch.setattr(*target, full)
    with pytest.raises(UserError, match="No space left"):
        save_checkpoint(make_model(seed=5, vocab_size=512), words, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert list(folder.parent.iterdir()) == [folder]
