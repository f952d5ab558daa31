"""minnow data grade: a ladder of two models over a task, some measured, the rest foretold; and bad input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.data.conversations import read_conversations


def test_measured_ones_by_their_answers_and_the_rest_foretold(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    models = [str(write_llama(tmp_path / f"llama{seed}", seed=seed)) for seed in (0, 1)]
    rows = [{"prompt": f"room {i}", "answer": {"room": i}} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "rooms.yaml").write_text("name: rooms\nverifier: json\ndata: rows.jsonl\n")
    out = tmp_path / "graded.jsonl"
    words = ["data", "grade", *models, "--prompts", str(tmp_path / "rooms.yaml"), "--out", str(out)]
    words += ["--measured", "30", "--max-new-tokens", "6"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    made = [json.loads(line) for line in out.read_text().splitlines()]
    assert document["examples"] == len(made) and sum(row["measured"] for row in made) == document["measured"] == 30
    assert {row["difficulty"] for row in made} == {1.0}, "models of random weights get nothing right"
    assert [row.difficulty for row in read_conversations(out)] == [1.0] * len(made)
    assert len((tmp_path / "graded.answers/1.jsonl").read_text().splitlines()) == 30
    assert main([*words, "--measured", "5"]) == 2
    assert "5 measured examples foretell nothing" in capsys.readouterr().err
    (tmp_path / "p.jsonl").write_text(json.dumps({"prompt": "x"}))
    assert main(["data", "grade", models[0], "--prompts", str(tmp_path / "p.jsonl"), "--out", str(out)]) == 2
    assert "none of the prompts has a worked example" in capsys.readouterr().err
