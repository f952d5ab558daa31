"""Merged checkpoint folders: equal to merging state dicts, whatever the chunks and shards; bad folders are told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from minnow.data.tokenizer import Tokenizer, train_tokenizer
from minnow.errors import UserError
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint, weight_files
from minnow.model.tensor_files import stored_tensors
from minnow.posttrain import merge_files
from minnow.posttrain.merge import Merge, merge_tensors
from minnow.posttrain.merge_files import merge_folders


@pytest.fixture
def folders(tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> list[Path]:
    """A base and two models made from it, stored in bfloat16."""
    made = []
    for number in range(3):
        torch.manual_seed(number)
        weights = {name: t + 0.05 * number * torch.randn_like(t) for name, t in tiny_model.state_dict().items()}
        folder = tmp_path / f"model-{number}"
        save_checkpoint(tiny_model, words, folder, weights, dtype=torch.bfloat16)
        made.append(folder)
    return made


@pytest.mark.parametrize("method", ["average", "slerp", "task-arithmetic", "ties", "dare", "della"])
@pytest.mark.parametrize("shard_bytes", [1 << 40, 40_000])
def test_a_merged_folder_holds_the_merged_tensors(
    folders: list[Path], tmp_path: Path, method: str, shard_bytes: int
) -> None:
    base, *models = folders
    settings = Merge(method, (0.6, 0.4))  # type: ignore[arg-type]
    read = [base, *models] if settings.needs_base else models
    merge_folders(models, settings, tmp_path / "out", base if settings.needs_base else None, shard_bytes=shard_bytes)
    given = [load_file(folder / "model.safetensors") for folder in read]
    made = {name: tensor for file in weight_files(tmp_path / "out") for name, tensor in load_file(file).items()}
    assert made.keys() == given[0].keys() and len(weight_files(tmp_path / "out")) == (1 if shard_bytes > 1 << 20 else 7)
    for name, tensor in made.items():
        wanted = merge_tensors([each[name] for each in given], settings, name)
        assert tensor.dtype == torch.bfloat16 and torch.equal(tensor, wanted.bfloat16()), name
    _, words = load_checkpoint(tmp_path / "out")
    assert words.digest == Tokenizer.load(models[0]).digest
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert theirs.dtype == torch.bfloat16


@pytest.mark.parametrize("method", ["slerp", "ties"])
def test_chunks_do_not_change_the_file(
    folders: list[Path], tmp_path: Path, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Merge(method)  # type: ignore[arg-type]
    base = folders[0] if settings.needs_base else None
    merge_folders(folders[1:], settings, tmp_path / "whole", base, dtype=torch.float32)
    monkeypatch.setattr(merge_files, "CHUNK", 1000)
    merge_folders(folders[1:], settings, tmp_path / "parts", base, dtype=torch.float32)
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    for name, tensor in whole.items():
        torch.testing.assert_close(parts[name], tensor, rtol=1e-6, atol=1e-7)
    assert json.loads((tmp_path / "parts/config.json").read_text())["dtype"] == "float32"


def test_headers_are_read_as_safetensors_wrote_them(tmp_path: Path) -> None:
    kinds = {"a": torch.arange(12.0).view(3, 4), "b": torch.tensor(7), "c": torch.ones(2, 3, 2, dtype=torch.float16)}
    save_file(kinds, tmp_path / "x.safetensors", metadata={"format": "pt"})
    found = stored_tensors([tmp_path / "x.safetensors"])
    assert {name: (each.shape, each.dtype) for name, each in found.items()} == {
        name: (tuple(tensor.shape), tensor.dtype) for name, tensor in kinds.items()
    }
    assert torch.equal(found["a"].rows(1, 3), kinds["a"][1:]) and int(found["b"].rows(0, 1)) == 7


def test_bad_input_is_one_sentence(folders: list[Path], tmp_path: Path, tiny_model: Backbone) -> None:
    base, first, second = folders
    out = tmp_path / "out"
    with pytest.raises(UserError, match="name that base"):
        merge_folders([first, second], Merge("ties"), out)
    with pytest.raises(UserError, match="average has no base"):
        merge_folders([first, second], Merge(), out, base)
    train_tokenizer(["other words than those"], 300).save(shutil.copytree(second, tmp_path / "words"))
    with pytest.raises(UserError, match="different tokenizers"):
        merge_folders([first, tmp_path / "words"], Merge(), out)
    tensors = load_file(second / "model.safetensors")
    name = next(iter(tensors))
    tensors[name] = tensors[name][:-1].contiguous()
    other = shutil.copytree(second, tmp_path / "shape")
    save_file(tensors, other / "model.safetensors")
    with pytest.raises(UserError, match=rf"not of one model: {name} is \[.*\] in the one and is \[.*\] in the other"):
        merge_folders([first, other], Merge(), out)
    file = shutil.copytree(second, tmp_path / "cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(UserError, match="damaged or cut short"):
        merge_folders([first, file.parent], Merge(), out)
    assert not out.exists()
