"""``minnow inspect``: names, files and folders, several models, budgets, the drawing, and what it says to bad input."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from minnow.cli import main
from minnow.cli.inspect import parse_size
from minnow.cli.inspect_chart import PARTS
from minnow.errors import UserError
from minnow.model.footprint import peak_memory
from minnow.model.inventory import PARTS as COUNTED_PARTS
from minnow.model.presets import PRESETS


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    def ask(*words: str | Path) -> Any:
        assert main(["inspect", *map(str, words), "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def text(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    def ask(*words: str | Path) -> str:
        assert main(["inspect", *map(str, words)]) == 0
        return capsys.readouterr().out

    return ask


def test_one_model_is_an_object_and_several_are_a_list(answer: Callable[..., Any]) -> None:
    one = answer("lfm2.5-350m")
    assert one["total"] == one["active"] == 354_483_968
    assert tuple(one["parts"]) == COUNTED_PARTS == tuple(PARTS)
    assert round(one["embedding_share"]["total"], 4) == 0.1893
    several = answer("LFM2-8B-A1B", "gemma-3-270m", "qwen3.5-0.8b")
    assert [each["total"] for each in several] == [8_339_929_856, 268_098_176, 752_393_024]
    assert several[0]["active"] == 1_557_740_288
    assert round(several[2]["embedding_share"]["checkpoint"], 4) == 0.2911


def test_figures_hang_on_the_contexts_asked_for(answer: Callable[..., Any]) -> None:
    document = answer("qwen3.5-0.8b", "--context", "1", "100000")
    assert list(document["state_bytes"]) == list(document["peak_memory"]["Q4_0"]) == ["1", "100000"]
    state = document["state_bytes"]["100000"]
    growth = document["state_growth"]
    assert state["total"] == growth["fixed"] + 100_000 * growth["per_token"]
    assert state["recurrent"] == 18 * 16 * 128 * 128 * 4
    assert document["flops_per_token"]["decode"]["100000"] > document["flops_per_token"]["decode"]["1"]


def test_a_config_file_alone_is_enough(answer: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("lfm3-1.7b", "lfm2-24b-a2b", "smollm2-360m"):
        file = tmp_path / "config.json"
        file.write_text(json.dumps(PRESETS[name].to_hf()))
        theirs, ours = answer(file), answer(name)
        assert {key: theirs[key] for key in ours if key not in ("model", "source")} == {
            key: ours[key] for key in ours if key not in ("model", "source")
        }


@pytest.mark.parametrize("name", ["gemma-3-270m", "qwen3.5-0.8b", "lfm2-8b-a1b", "smollm2-135m"])
def test_a_folder_of_any_family_is_counted_from_its_tensors(
    answer: Callable[..., Any], tmp_path: Path, name: str
) -> None:
    small = {"vocab_size": 96, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
    small |= {"intermediate_size": 96, "moe_intermediate_size": 32, "num_hidden_layers": 4, "num_experts": 8}
    small |= {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    written = PRESETS[name].to_hf()
    written |= {key: value for key, value in small.items() if key in written}
    written["layer_types"] = written["layer_types"][:4] if "layer_types" in written else None
    # Names that other runtimes read say the same twice.
    others = ("block_", "conv_dim", "full_attn_idxs", "num_heads")
    written = {key: value for key, value in written.items() if value is not None and not key.startswith(others)}
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(AutoConfig.for_model(**written))
    theirs.save_pretrained(tmp_path / "model")
    document = answer(tmp_path / "model", "--context", "64")
    assert document["total"] == sum(parameter.numel() for parameter in theirs.parameters())


def test_a_budget_names_the_largest_context_of_every_type(answer: Callable[..., Any]) -> None:
    fits = answer("lfm2-350m", "--memory", "1GB")["fits"]
    assert fits["budget_bytes"] == 10**9
    most = fits["largest_context"]["Q4_0"]["x86"]
    assert peak_memory(PRESETS["lfm2-350m"], "Q4_0", most)["total"] <= 10**9
    assert peak_memory(PRESETS["lfm2-350m"], "Q4_0", most + 1)["total"] > 10**9
    assert fits["largest_context"]["Q4_0"]["none"] > most


def test_the_text_says_what_a_person_asks(text: Callable[..., str]) -> None:
    words = text("qwen3.5-0.8b", "--context", "4096", "--memory", "1GB")
    assert "24 layers (18 linear attention, 6 attention with 8 query and 2 key heads of 256)" in words
    for line in ("29.11%", "33.80%", "the whole published checkpoint (873,438,784)", "does not fit", "--no-repack"):
        assert line in words
    beside = text("lfm2-350m", "smollm2-135m")
    assert "smollm2-135m is made for 8,192 positions" in beside
    assert "the multi" not in beside and "\x1b" not in beside


def test_bars_fill_the_same_columns_for_every_model(text: Callable[..., str]) -> None:
    names = list(PRESETS)
    lines = text(*names).splitlines()
    marks = {mark for _, _, mark in PARTS.values()}
    for name, line in zip(names, lines, strict=False):
        assert line.startswith(f"{name} ")
        assert sum(letter in marks for letter in line.split()[1]) == 60


def test_the_drawing_holds_every_model_and_its_numbers(answer: Callable[..., Any], tmp_path: Path) -> None:
    file = tmp_path / "drawn" / "models.svg"
    documents = answer("gemma-3-270m", "lfm2-8b-a1b", "--svg", file, "--memory", "4GiB", "--context", "2048")
    root = ElementTree.fromstring(file.read_text(encoding="utf-8"))
    width, height = (float(root.attrib[key]) for key in ("width", "height"))
    words = [element.text for element in root.iter("{http://www.w3.org/2000/svg}text")]
    for document in documents:
        assert document["model"] in words
    assert {"62.6%", "92.9%", "budget 4GiB"} <= set(words)
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        left, top = float(bar.get("x", 0)), float(bar.get("y", 0))
        assert left + float(bar.attrib["width"]) <= width + 0.5 and top + float(bar.attrib["height"]) <= height + 0.5


@pytest.mark.parametrize(
    ("words", "size"), [("1GB", 10**9), ("1.5 GiB", 3 * 2**29), ("800mb", 8 * 10**8), ("512Ki", 2**19), ("4096", 4096)]
)
def test_sizes_are_decimal_or_binary_as_written(words: str, size: int) -> None:
    assert parse_size(words) == size


@pytest.mark.parametrize("words", ["", "GB", "1TB", "-1GB", "0GB", "1 G B", "i", "1iB", "0.5"])
def test_other_sizes_are_refused(words: str) -> None:
    with pytest.raises(UserError, match="not a size of memory"):
        parse_size(words)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        ([], "name at least one model"),
        (["lfm2-351m"], "did you mean lfm2-350m?"),
        (["GEMMA-3-270"], "did you mean gemma-3-270m?"),
        (["lfm2-350m", "runs/none"], "there is no model at runs/none"),
        (["lfm2-350m", "--memory", "much"], "'much' is not a size of memory"),
        (["lfm2-350m", "--context", "0"], "lengths of at least 1"),
        (["lfm2-350m", "--context", "--svg", "a.svg"], "give at least one length"),
    ],
)
def test_bad_input_is_one_sentence(capsys: pytest.CaptureFixture[str], words: list[str], part: str) -> None:
    assert main(["inspect", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("minnow: ") == 1 and part in err
