"""recipes/fix-doom-loops.yaml on a checkpoint of another family, in miniature, and the commands that are its stages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from gguf import GGUFReader, quants
from transformers import AutoModelForCausalLM, AutoTokenizer

from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.device.gguf_export import export_gguf
from minnow.posttrain.gate import Gate

ROOT = Path(__file__).resolve().parents[2]
SMALL = {"learning_rate": 1e-3, "muon": False, "weight_decay": 0.0}
TRAINING = {"steps": 2, "log_every": 1, "optimizer": SMALL}
GATE = {"every": 1, "loop_prompts": 4, "max_new_tokens": 200}
PAIRS = {"temperatures": [1.0, 1.0, 1.0], "max_new_tokens": 320, "score_gap": 0.0, "loop_share": 1.0, "overlap": 1.0}


def recipe() -> dict[str, Any]:
    """The recipe as it is shipped, with a few prompts, steps and tokens."""
    document = yaml.safe_load((ROOT / "recipes/fix-doom-loops.yaml").read_text())
    stages = document["stages"]
    for name in ("measure-base", "measure-dpo", "measure-grpo"):
        stages[name] |= {"max_new_tokens": 200, "temperatures": [0.0]}
    stages["pairs"] |= {"pairs": PAIRS}
    stages["dpo"] |= {
        "pairs_per_step": 2,
        "refresh_every": 1,
        "max_new_tokens": 200,
        "training": TRAINING,
        "gate": GATE,
    }
    rollouts = {"prompts": 3, "temperatures": [0.0, 1.0, 1.0], "max_new_tokens": 100, "row_length": 256}
    stages["grpo"] |= {"rollouts": rollouts, "training": TRAINING, "gate": GATE}
    return document


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint, prompts with and without answers, and the recipe that has run over them."""
    folder = tmp_path_factory.mktemp("fix")
    write_llama(folder / "llama")
    rows: list[dict[str, Any]] = [{"prompt": f"Name {i} towns.", "task": "Long list"} for i in range(12)]
    rows += [{"messages": [{"role": "user", "content": f"{i} + 1"}], "answer": i + 1} for i in range(8)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "fix.yaml").write_text(yaml.safe_dump(recipe(), sort_keys=False))
    torch.set_num_threads(1)
    words = [f"checkpoint={folder / 'llama'}", f"data.prompts=[{folder / 'prompts.jsonl'}]", "threads=1"]
    flags = [word for each in words for word in ("--set", each)]
    assert main(["run", str(folder / "fix.yaml"), *flags, "--run-folder", str(folder / "run"), "--json"]) == 0
    return folder


def result(work: Path, stage: str) -> dict[str, Any]:
    return json.loads((work / "run" / stage / "result.json").read_text())


def test_every_stage_ran_and_the_last_model_opens_in_transformers(work: Path) -> None:
    summary = json.loads((work / "run/summary.json").read_text())
    assert [row["status"] for row in summary["stages"]] == ["ran"] * 8
    base, healed = work / "llama", work / "run/grpo/checkpoint"
    assert AutoTokenizer.from_pretrained(healed).chat_template == AutoTokenizer.from_pretrained(base).chat_template
    models = [AutoModelForCausalLM.from_pretrained(folder) for folder in (base, healed)]
    assert type(models[1]) is type(models[0])
    report = (work / "run/report.html").read_text()
    assert "as given" in report.lower()


def test_prompts_are_parted_once_and_measured_apart(work: Path) -> None:
    measured, pairs = result(work, "measure-base"), result(work, "pairs")
    (loops,) = measured["loops"]
    assert loops["total"] == 4 and pairs["prompts"] == 12, "of 20 prompts a fifth is held out and a fifth the gate's"
    assert set(measured["tasks"]) <= {"long-list", "prompts"}
    assert pairs["rollouts"] == 12 * 4 and sum(pairs["fates"].values()) == 12
    paired = [json.loads(line) for line in (work / "run/pairs/pairs.jsonl").read_text().splitlines()]
    assert len(paired) == pairs["pairs"] > 0
    assert {"prompt", "chosen", "rejected", "model", "judges", "seed", "rejected_onset"} <= set(paired[0])


def test_checkpoints_are_chosen_by_loops_and_score(work: Path) -> None:
    for stage in ("dpo", "grpo"):
        history = result(work, stage)["history"]
        assert [entry["step"] for entry in history] == [0, 1, 2]
        best = next(entry for entry in history if entry["step"] == result(work, stage)["best_step"])
        floor = max(entry["task_score"] for entry in history) - 0.05
        assert best["loop_rate"] == min(entry["loop_rate"] for entry in history if entry["task_score"] >= floor)


def test_a_finished_run_is_kept_and_another_checkpoint_runs_anew(
    work: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["run", str(work / "fix.yaml"), "--run-folder", str(work / "run"), "--dry-run", "--json"]
    words += ["--set", f"data.prompts=[{work / 'prompts.jsonl'}]", "--set", "threads=1", "--set"]
    capsys.readouterr()
    assert main([*words, f"checkpoint={work / 'llama'}"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert {row["action"] for row in stages} == {"keep"}
    assert main([*words, f"checkpoint={write_llama(work / 'other', seed=1)}"]) == 0
    stages = json.loads(capsys.readouterr().out)["stages"]
    assert [row["action"] for row in stages] == ["run"] * 8


def test_bad_input_is_one_sentence(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = work / "few.jsonl"
    few.write_text('{"prompt": "one"}\n{"prompt": "two"}\n')
    shipped = ["run", str(ROOT / "recipes/fix-doom-loops.yaml"), "--run-folder", str(work / "bad")]
    there = ["--set", f"checkpoint={work / 'llama'}", "--set"]
    for words, sentence in (
        ([], "name it with --set checkpoint=FOLDER"),
        (["--set", f"checkpoint={work / 'gone'}"], "there is no checkpoint folder"),
        ([*there, "data.prompts=[enumerations]"], "did you mean enumeration?"),
        ([*there, "data.prompts=[]"], "name some with data.prompts"),
        ([*there, f"data.prompts=[{few}]"], "there are 2 different prompts, too few"),
    ):
        capsys.readouterr()
        assert main([*shipped, *words]) == 2
        assert sentence in capsys.readouterr().err


def test_dpo_and_grpo_are_the_stages(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The pairs of the recipe's own stage train by the command, which writes a run folder that is gone on with."""
    model, prompts, pairs = str(work / "llama"), str(work / "prompts.jsonl"), str(work / "run/pairs/pairs.jsonl")
    small = ["--threads", "1", "--training.optimizer.learning-rate", "1e-3", "--gate.loop-prompts", "2", "--json"]
    small += ["--gate.max-new-tokens", "100", "--prompts", prompts, "--training.steps", "2"]
    dpo = ["dpo", model, pairs, "--out", str(work / "dpo"), *small, "--pairs-per-step", "2", "--refresh-every", "0"]
    grpo = ["grpo", model, "--out", str(work / "rl"), *small, "--rollouts.prompts", "2"]
    grpo += ["--rollouts.temperatures", "0", "1", "--rollouts.max-new-tokens", "60"]
    for words in (dpo, grpo):
        capsys.readouterr()
        assert main(words) == 0
        document = json.loads(capsys.readouterr().out)
        assert document["steps"] == 2 and (Path(document["checkpoint"]) / "model.safetensors").is_file()
        assert main(words) == 0 and json.loads(capsys.readouterr().out) == document
    (work / "text.jsonl").write_text('{"prompt": "a", "chosen": "b"}\n')
    assert main(["dpo", model, str(work / "text.jsonl"), "--out", str(work / "no"), *small]) == 2
    assert "has no 'rejected', only prompt, chosen" in capsys.readouterr().err


def test_training_ends_once_the_gate_sees_no_loops(
    work: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measured = iter([(0.5, 0.7), (0.0, 0.2), (0.0, 0.72), (0.0, 0.9)])  # the second heals and forgets
    monkeypatch.setattr(Gate, "measure", lambda self: next(measured))
    words = ["dpo", str(work / "llama"), str(work / "run/pairs/pairs.jsonl"), "--out", str(work / "early"), "--json"]
    words += ["--threads", "1", "--prompts", str(work / "prompts.jsonl")]
    words += ["--pairs-per-step", "2", "--refresh-every", "0"]
    capsys.readouterr()
    assert main([*words, "--training.steps", "9", "--gate.every", "1", "--gate.stop-at", "0"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["best_step"] == 2 and [entry["step"] for entry in document["history"]] == [0, 1, 2]


def test_a_teacher_corrects_the_students_own_answers(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Branches that are merged and trained on are stages like any others."""
    teacher = write_llama(work / "teacher", seed=5)
    taught = {"kind": "on-policy", "checkpoint": "base", "teacher": str(teacher), "prompts": 8, "max_new_tokens": 60}
    taught |= {"training": {**TRAINING, "steps": 6}, "gate": {**GATE, "every": 6}}
    merged = {"kind": "merge", "checkpoints": ["base", "taught"], "base": "base", "shares": [0.5], "gate": GATE}
    merged |= {"methods": [{"method": "ties"}, {"method": "task-arithmetic", "scale": 0.5}], "margin": -1.0}
    stages = {"base": {"kind": "checkpoint"}, "taught": taught, "merged": merged}
    document = {
        **recipe(),
        "stages": stages,
        "checkpoint": str(work / "llama"),
        "threads": 1,
        "run_folder": str(work / "taught"),
    }
    document["data"] = {"kind": "prompts", "prompts": [str(work / "prompts.jsonl")]}
    (work / "taught.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    assert main(["run", str(work / "taught.yaml")]) == 0
    curve = [json.loads(line) for line in (work / "taught/taught/metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in curve if "loss" in line]
    assert len(losses) == 6 and sum(losses[3:]) < sum(losses[:3]) and all(loss > 0 for loss in losses)
    found = json.loads((work / "taught/merged/result.json").read_text())
    assert [each["name"] for each in found["candidates"]] == [
        "taught", "0.50 taught + 0.50 base", "ties of base, taught", "task-arithmetic of base, taught",
    ]  # fmt: skip
    best = max(found["candidates"], key=lambda each: each["task_score"])
    assert found["kept"] is (found["chosen"] != "taught") and found["chosen"] in {
        each["name"] for each in found["candidates"]
    }
    assert best["task_score"] >= found["candidates"][0]["task_score"]
    strange = write_llama(work / "strange")
    written = json.loads((strange / "tokenizer.json").read_text())
    written["model"]["merges"].pop()
    (strange / "tokenizer.json").write_text(json.dumps(written))
    words = ["--set", f"stages.taught.teacher={strange}", "--run-folder", str(work / "no")]
    assert main(["run", str(work / "taught.yaml"), *words]) == 2
    assert "has another tokenizer than the student" in capsys.readouterr().err


def test_a_model_learns_to_be_rounded(work: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is saved is what a Q4_0 file holds, value for value."""
    words = ["quantise", str(work / "llama"), "--out", str(work / "rounded"), "--prompts", str(work / "prompts.jsonl")]
    capsys.readouterr()
    words += ["--training.steps", "3", "--answers", "16", "--texts", "8", "--row-length", "128", "--rows", "1"]
    words += ["--max-new-tokens", "40", "--gate.every", "3"]
    assert main([*words, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [entry["step"] for entry in document["history"]] == [0, 3] and document["steps"] == 3
    checkpoint = Path(document["checkpoint"])
    plain, four_bits = (
        {
            tensor.name: tensor
            for tensor in GGUFReader(export_gguf(checkpoint, work / f"{kind}.gguf", kind).file).tensors
        }
        for kind in ("F32", "Q4_0")
    )
    assert four_bits["blk.0.attn_q.weight"].tensor_type.name == "Q4_0"
    for name, tensor in four_bits.items():
        if tensor.tensor_type.name == "F16":
            continue  # of an odd width, which is not trained in blocks
        np.testing.assert_array_equal(
            quants.dequantize(tensor.data, tensor.tensor_type).ravel(), plain[name].data.ravel(), err_msg=name
        )
