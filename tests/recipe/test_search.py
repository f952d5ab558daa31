"""recipes/search.yaml in miniature: what an expert does is trained on from easy to hard, and looking up is measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from minnow.cli.agent_tools import offered_tools
from minnow.cli.main import main
from minnow.data.tokenizer import train_tokenizer
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.recipe.run_record import RunRecord
from minnow.recipe.schema import DataSettings, ModelSettings
from minnow.tasks import PocketWorld
from minnow.tasks.made_world import KINDS

RECIPE = Path(__file__).resolve().parents[2] / "recipes/search.yaml"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("search")
    words = train_tokenizer(PocketWorld(1, 250).documents(200), 400)
    model = Backbone(ModelSettings(32, 64, ("conv", "attn"), 2, 1, 16, words.vocab_size).config(words.vocab_size))
    model.initialise(0)
    save_checkpoint(model, words, folder / "base")
    document = yaml.safe_load(RECIPE.read_text())
    document |= {"checkpoint": str(folder / "base"), "threads": 1}
    document["data"]["count"] = 8
    stages = document["stages"]
    stages["chats"]["sources"]["lookups"]["examples"] = 300
    stages["sft"] |= {"training": {"steps": 2, "log_every": 1, "optimizer": {"learning_rate": 1e-3, "muon": False}}}
    for name in ("lookups-base", "lookups-sft"):
        stages[name] |= {"pages": 400, "each": 2, "injections": 3, "max_new_tokens": 4}
    (folder / "search.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert main(["run", str(folder / "search.yaml"), "--run-folder", str(folder / "run"), "--json"]) == 0
    return folder / "run"


def result(run: Path, stage: str) -> dict[str, Any]:
    return json.loads((run / stage / "result.json").read_text())


def test_the_experts_examples_are_trained_on_from_easy_to_hard(run: Path) -> None:
    chats = result(run, "chats")
    assert chats["trained"]["lookups"] == {"rows": 300, "weight": None, "epochs": None, "easy_to_hard": True}
    assert chats["checks"]["contaminated"]["count"] == 0 and result(run, "sft")["steps"] == 2


def test_every_kind_of_question_is_measured_before_and_after(run: Path) -> None:
    for stage in ("lookups-base", "lookups-sft"):
        found = result(run, stage)
        counts = {kind: each["exact"]["total"] for kind, each in found["search"].items()}
        assert counts == dict.fromkeys(KINDS, 2) | {"injected": 3}
        assert set(found["closed book"]) == set(KINDS) and set(found["oracle"]) == set(KINDS) - {"unanswerable"}
        assert len(found["wrong"]) == 19  # nothing that a random model says is right
        assert found["pages"] > 350


def test_a_model_of_the_run_has_the_tool_it_was_trained_on(run: Path, tmp_path: Path) -> None:
    (tmp_path / "velm.txt").write_text("Velm is a town.")
    record = {"name": "pocket", "seed": 1, "data": {"kind": "pocket", "entities": 250}, "stages": {"sft": {}}}
    origin = tmp_path / "pocket"
    origin.mkdir()
    (origin / "recipe.json").write_text(json.dumps({"recipe": record}))
    later = RunRecord(run, "search", 1, DataSettings("prompts", prompts=("lookups",)), ("sft",), str(origin / "sft"))
    assert [tool.name for tool in offered_tools(later, str(tmp_path), None)] == ["search"]
    alone = replace(later, checkpoint=None)
    assert [tool.name for tool in offered_tools(alone, str(tmp_path), None)] == ["web_search", "open_page"]
