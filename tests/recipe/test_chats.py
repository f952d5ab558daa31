"""minnow sft and its stages: conversations and tasks as sources, packed with masks, weighted, checked and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.data.rows import IGNORED
from minnow.errors import UserError
from minnow.files import read_json
from minnow.recipe.mapping import from_mapping
from minnow.recipe.stages.chats import ChatsSettings, read_chats


def chat(asked: str, said: str, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": asked}, {"role": "assistant", "content": said}], **more}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("sft")
    write_llama(folder / "llama")
    (folder / "long.jsonl").write_text(json.dumps(chat("word " * 300, "yes")) + "\n")
    rows = [chat(f"Name {i} towns.", f"Velm {i}", difficulty=(i * 7) % 40) for i in range(40)]
    (folder / "towns.jsonl").write_text("\n".join(map(json.dumps, [*rows, rows[3]])))
    tickets = [{"prompt": f"ticket {i}", "answer": {"room": i}} for i in range(30)]
    (folder / "tickets.jsonl").write_text("\n".join(map(json.dumps, tickets)))
    (folder / "tickets.yaml").write_text("name: tickets\nverifier: json\ndata: tickets.jsonl\n")
    return folder


FLAGS = ["--row-length", "64", "--rows", "2", "--training.optimizer.muon", "False", "--threads", "1"]


def test_files_and_tasks_are_trained_by_weight_and_the_data_is_reported(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sft", str(folder / "llama"), str(folder / "towns.jsonl"), "--tasks", str(folder / "tickets.yaml")]
    words += ["--weights", "0.75", "0.25", "--training.steps", "8", "--out", str(folder / "run"), *FLAGS]
    assert main([*words, "--json", "--leave-out", "copies"]) == 0
    document = json.loads(capsys.readouterr().out)
    data = document["data"]
    assert data["checks"]["copies"] == {"count": 1, "first": [f"line 41 of {folder / 'towns.jsonl'}"]}
    assert data["trained"]["1-towns"]["rows"] == 40 and data["rows"] == 41 + data["trained"]["2-tickets"]["rows"]
    sources = read_chats(folder / "run/chats", 64, 0)
    read = {source.name: document["sources"][source.name] * len(source.rows) for source in sources}
    assert read == {"1-towns": 12, "2-tickets": 4}, "16 rows in the proportion of the weights"
    assert (folder / "run/sft/checkpoint/model.safetensors").is_file()
    assert main([*words, "--leave-out", "copies"]) == 0
    shown = capsys.readouterr().out
    assert f"line 41 of {folder / 'towns.jsonl'}" in shown and "8 steps" in shown, "kept, not run again"


def test_epochs_in_place_of_steps_and_a_low_rank_adapter(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["sft", str(folder / "llama"), str(folder / "towns.jsonl"), "--epochs", "2", "--out", str(folder / "lora")]
    assert main([*words, *FLAGS, "--json", "training.lora:lora-settings", "--training.lora.rank", "2"]) == 0
    document = json.loads(capsys.readouterr().out)
    rows = len(read_chats(folder / "lora/chats", 64, 0)[0].rows)
    assert document["steps"] == round(2 * rows / 2) and abs(document["epochs"] - 2) < 0.2
    assert (folder / "lora/sft/adapter/adapter_config.json").is_file()


def test_rows_come_from_easy_to_hard_and_none_is_without_a_target(folder: Path) -> None:
    words = ["sft", str(folder / "llama"), str(folder / "towns.jsonl"), str(folder / "long.jsonl")]
    words += ["--training.steps", "1", "--easy-to-hard", "--out", str(folder / "order"), *FLAGS]
    (folder / "long.jsonl").write_text(json.dumps(chat("word " * 300, "yes", difficulty=1)) + "\n")
    assert main(words) == 0
    towns, long = read_chats(folder / "order/chats", 64, 0)
    assert towns.in_order and towns.weight + long.weight == 1
    for source in (towns, long):
        assert isinstance(source.rows.targets, np.ndarray)
        assert (source.rows.targets != IGNORED).any(1).all()
    assert len(long.rows) == 1, "of a conversation of hundreds of tokens only the end holds an answer"


def test_bad_input_is_one_sentence(folder: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text("\n".join(map(json.dumps, (chat("a " * 40, "b"), {}, chat("c " * 40, "d")))))
    words = ["sft", str(folder / "llama"), str(bad), "--out", str(tmp_path / "run"), "--training.steps", "1", *FLAGS]
    assert main(words) == 2
    assert f"line 2 of {bad} has neither 'messages'" in capsys.readouterr().err
    assert main([*words, "--skip-bad-rows"]) == 0
    assert f"warning: line 2 of {bad}" in capsys.readouterr().err
    assert read_json(tmp_path / "run/chats/result.json")["trained"]["1-bad"]["rows"] == 2
    assert main([*words, "--weights", "0.5", "0.5"]) == 2
    assert "2 shares for 1 files and tasks" in capsys.readouterr().err
    assert main([*words, "--skip-bad-rows", "--easy-to-hard"]) == 2
    assert "has no 'difficulty', which easy_to_hard goes by" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("sources", "sentence"),
    [
        ({}, "sources is empty"),
        ({"a": {}}, "a source is a file, a task or"),
        ({"a": {"path": "x", "weight": 1.0}, "b": {"path": "y"}}, "some sources have a weight and some have none"),
        ({"a": {"path": "x", "epochs": 0}}, "epochs is 0"),
    ],
)
def test_sources_that_make_no_sense(sources: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        from_mapping(ChatsSettings, {"sources": sources})
