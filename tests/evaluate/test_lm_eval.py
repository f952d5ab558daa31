"""lm-evaluation-harness on Minnow's engines: the numbers of its own ``hf`` model on the same checkpoint."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from bad_server import bad_server, spoken, stream
from minnow.cli import main
from minnow.data.tokenizer import Tokenizer
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.rollout import TorchEngine
from minnow.rollout.scoring import TorchScorer
from minnow.rollout.text_engine import LocalTextEngine

lm_eval = pytest.importorskip("lm_eval", reason="lm-eval is not installed (pip install lm-eval)")

CHOICE = """
task: towns_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{options}}}}"
doc_to_target: "{{{{label}}}}"
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""
ROLLING = """
task: towns_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{{{question}}}}"
metric_list: [{{metric: bits_per_byte}}]
"""
WRITING = """
task: towns_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{options[0]}}}}"
generation_kwargs: {{until: ["e", "."], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture
def folder(tmp_path: Path, tiny_model: Backbone, words: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkpoint, and three tasks over twelve questions."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [
        {"question": f"The town number {i} lies by " + "the river " * (i % 4), "options": ["the sea.", "a hill", "Val Tor"], "label": i % 3}
        for i in range(12)
    ]  # fmt: skip
    (tmp_path / "data.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "tasks").mkdir()
    for name, text in (("choice", CHOICE), ("text", ROLLING), ("writing", WRITING)):
        (tmp_path / f"tasks/{name}.yaml").write_text(text.format(data=tmp_path / "data.jsonl"))
    save_checkpoint(tiny_model, words, tmp_path / "model")
    return tmp_path


def evaluated(folder: Path, model: Any, **settings: Any) -> dict[str, Any]:
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(folder / "tasks"), include_defaults=False)
    names = ["towns_choice", "towns_text", "towns_writing"]
    return lm_eval.simple_evaluate(
        model=model, tasks=names, task_manager=manager, bootstrap_iters=0, log_samples=True, **settings
    )


def test_the_numbers_are_those_of_the_hf_model(folder: Path) -> None:

    importlib.import_module("lm_eval.models")  # it registers hf
    from minnow.evaluate.lm_eval import MinnowLM

    theirs = evaluated(
        folder, "hf", model_args=f"pretrained={folder / 'model'},dtype=float32", batch_size=4, device="cpu"
    )
    model, words = load_checkpoint(folder / "model")
    engine = LocalTextEngine(TorchEngine(model, words), words, rows=8)
    lm = MinnowLM(engine=engine, scorer=TorchScorer(model, words.pad_id), tokenizer=words, begin=False)
    ours = evaluated(folder, lm)
    for name in theirs["results"]:
        for one, other in zip(ours["samples"][name], theirs["samples"][name], strict=True):
            if name == "towns_writing":
                assert one["resps"] == other["resps"]
                continue
            for (mine,), (its,) in zip(one["resps"], other["resps"], strict=True):
                mine, its = (mine, its) if isinstance(mine, tuple | list) else ([mine], [its])
                assert mine[0] == pytest.approx(its[0], abs=1e-3) and mine[1:] == its[1:]
    assert ours["results"]["towns_choice"]["acc,none"] == theirs["results"]["towns_choice"]["acc,none"]
    assert lm.loops("towns_writing").total == 12


def test_minnow_eval_runs_them_beside_its_own(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tasks = ",".join(f"lm-eval:{folder / 'tasks' / name}.yaml" for name in ("choice", "writing"))
    (folder / "text.txt").write_text("The town lies by the river.")
    words = ["eval", str(folder / "model"), "--tasks", f"{tasks},bits-per-byte={folder / 'text.txt'}", "--n", "6"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["lm_eval"]["towns_choice"]["n"] == 6 and document["lm_eval"]["towns_choice"]["loops"] is None
    assert document["lm_eval"]["towns_writing"]["loops"]["total"] == 6
    assert document["texts"][f"bits-per-byte={folder / 'text.txt'}"]["bytes"] == 27
    assert main(words) == 0 and "lm-eval:towns_writing" in capsys.readouterr().out
    assert main(["eval", str(folder / "model"), "--tasks", f"lm-eval:{folder}/none.yaml"]) == 2
    assert "there is no task file" in capsys.readouterr().err


def test_a_server_generates_and_scores_nothing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with bad_server(lambda body, _: spoken("the sea.") if "messages" in body else stream(
        [b'data: {"choices": [{"text": "the sea. And on", "finish_reason": "stop"}]}\n\n', b"data: [DONE]\n\n"]
    )) as server:  # fmt: skip
        words = ["eval", server.url, "--model", "tiny", "--json", "--tasks"]
        assert main([*words, f"lm-eval:{folder / 'tasks/writing.yaml'}"]) == 0
        assert server.bodies[0]["stop"] == ["e", "."]
        assert main([*words, f"lm-eval:{folder / 'tasks/choice.yaml'}"]) == 2
    assert "a server gives no log-likelihoods" in capsys.readouterr().err
