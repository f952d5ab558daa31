"""recipes/specialist.yaml on a checkpoint of another family, in miniature: own prompts, worked examples, other tasks."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.recipe.registry import stage_kinds
from minnow.recipe.schema import load_recipe, parse_recipe
from minnow.recipe.stages.measuring import MeasureSettings
from minnow.recipe.stages.prompts import own_prompts

ROOT = Path(__file__).resolve().parents[2]
TRAINING = {"steps": 1, "log_every": 1, "optimizer": {"learning_rate": 1e-3, "muon": False}}
GATE = {"every": 1, "loop_prompts": 4, "max_new_tokens": 24}


def recipe() -> dict[str, Any]:
    """The recipe as it is shipped, with few steps and tokens, for a model whose shape llama.cpp is not asked about."""
    document = yaml.safe_load((ROOT / "recipes/specialist.yaml").read_text())
    stages = document["stages"]
    del stages["export"]
    for settings in stages.values():
        if settings.get("kind") == "measure":
            settings |= {"max_new_tokens": 24, "loop_prompts": 4, "examples": 3}
    stages["sft"] |= {"row_length": 128, "rows": 2, "training": TRAINING}
    stages["pairs"]["pairs"] |= {"score_gap": 0.0, "temperatures": [1.0, 1.5], "max_new_tokens": 24}
    stages["dpo"] |= {"pairs_per_step": 2, "replay_rows": 2, "row_length": 128, "training": TRAINING, "gate": GATE}
    rollouts = {"prompts": 3, "temperatures": [0.0, 1.0], "max_new_tokens": 24, "row_length": 128}
    stages["grpo"] |= {"rollouts": rollouts, "training": TRAINING, "gate": GATE}
    stages["merge"] |= {"gate": GATE}
    # Nothing that a random model says is right: what was set aside as the lesser of two answers stands for it.
    stages["pairs"] = {"kind": "preferences", "checkpoint": "sft", "file": "pairs.jsonl"}
    return document


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("specialist")
    write_llama(folder / "llama")
    rows = [{"prompt": f"room {i}", "answer": {"room": i}} for i in range(40)]
    (folder / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "rooms.yaml").write_text("name: rooms\nverifier: json\ndata: rows.jsonl\nmax_new_tokens: 24\n")
    pairs = [{"prompt": f"room {i}", "chosen": f'{{"room": {i}}}', "rejected": "no"} for i in range(6)]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    document = recipe()
    document["stages"]["pairs"]["file"] = str(folder / "pairs.jsonl")
    document |= {"checkpoint": str(folder / "llama"), "threads": 1}
    document["data"] |= {"prompts": [str(folder / "rooms.yaml")], "others": ["messages"]}
    (folder / "specialist.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert main(["run", str(folder / "specialist.yaml"), "--run-folder", str(folder / "run"), "--json"]) == 0
    return folder


def result(work: Path, stage: str) -> dict[str, Any]:
    return json.loads((work / "run" / stage / "result.json").read_text())


def test_the_task_and_the_others_are_measured_before_and_after(work: Path) -> None:
    for stage in ("measure-base", "measure-sft", "measure-grpo", "measure-merge"):
        assert {task: rate["total"] for task, rate in result(work, stage)["tasks"].items()} == {
            "rooms": 4,
            "messages": 3,
        }


def test_the_tasks_own_worked_examples_are_trained_on_and_no_held_out_one(work: Path) -> None:
    prompts = own_prompts(load_recipe(work / "specialist.yaml"))
    chats = result(work, "chats")
    assert chats["trained"]["task"]["rows"] == len(prompts.train) and chats["checks"]["contaminated"]["count"] == 0
    assert {each.split for each in prompts.held_out} == {"held_out"}
    assert result(work, "merge")["chosen"] and "rooms" in (work / "run/report.html").read_text()


def test_what_another_tasks_files_hold_counts_and_not_their_name(tmp_path: Path) -> None:
    def contents() -> dict[str, str]:
        document = {"name": "x", "checkpoint": "x", "stages": {"base": {"kind": "checkpoint"}}}
        document["data"] = {"kind": "prompts", "prompts": ["reasoning"], "others": [str(file)]}
        return MeasureSettings(checkpoint="base").contents(parse_recipe(document, stage_kinds()))

    file, rows = tmp_path / "a.yaml", tmp_path / "rows.jsonl"
    rows.write_text("\n".join(json.dumps({"prompt": f"room {i}", "answer": {"room": i}}) for i in range(40)))
    file.write_text("name: rooms\nverifier: json\ndata: rows.jsonl\n")
    before = contents()
    file = file.rename(tmp_path / "b.yaml")
    assert contents() == before
    rows.write_text(rows.read_text().replace("room 1", "hall 1"))
    assert contents() != before
