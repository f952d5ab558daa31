"""minnow data generate: from references, from a model and from a server; stopped, gone on with, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bad_server import bad_server, spoken
from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.data.conversations import read_conversations
from minnow.data.tokenizer import train_tokenizer


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_worked_examples_of_an_environment_are_a_first_data_set(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "cold.jsonl"
    words = ["data", "generate", "references", "--prompts", "function-calls", "--n", "30", "--out", str(out)]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    made = rows(out)
    assert document["rows"] == len(made) >= 25 and {row["model"] for row in made} == {"reference"}
    assert all(row["tools"] and row["score"] == 1.0 for row in made)
    tokenizer = train_tokenizer(["a call of a function"], 300)
    for row in read_conversations(out):
        row.tokenised(tokenizer)


def test_a_servers_right_answers_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = [{"id": i, "prompt": f"{i} + 1", "answer": i + 1} for i in range(6)]
    (tmp_path / "sums.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out = tmp_path / "made.jsonl"
    with bad_server(lambda body, count: spoken("It is 3.")) as server:
        words = ["data", "generate", server.url, "--model", "m", "--prompts", str(tmp_path / "sums.jsonl")]
        words += ["--samples", "2", "--out", str(out), "--json"]
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["fates"] == {"no right answer": 5, "kept": 1} and document["answers"] == 12
        (row,) = rows(out)
        assert row["messages"][-1]["content"] == "It is 3." and row["model"].startswith("m at http")
        assert row["difficulty"] == 0.0 and row["temperature"] == 0.8 and row["shots"] == 0
        calls = len(server.bodies)
        assert main(words) == 0 and len(server.bodies) == calls, "answers that are there are not asked for again"


def test_what_is_no_use_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(1)
    model = write_llama(tmp_path / "llama")
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "a", "answer": "never said"}))
    words = ["data", "generate", str(model), "--prompts", str(tmp_path / "p.jsonl"), "--out", str(tmp_path / "o.jsonl")]
    assert main([*words, "--max-new-tokens", "8"]) == 2
    assert "nothing is left of 4 answers (no " in capsys.readouterr().err and not (tmp_path / "o.jsonl").exists()
    assert main([*words, "--samples", "0"]) == 2
    assert "samples is 0" in capsys.readouterr().err
    assert main([*words, "--shots", "1"]) == 2
    assert "0 other worked examples" in capsys.readouterr().err
