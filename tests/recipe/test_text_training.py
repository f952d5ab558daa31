"""What a text stage can be told: checkpoints on the way, averages, warm-up of batches, a teacher."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from minnow.cli.main import main
from minnow.evaluate.text import held_out_loss
from minnow.model.checkpoint import load_checkpoint
from minnow.posttrain.merge import soup

MODEL = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "layers": ["conv", "attn"], "heads": 2,
    "kv_heads": 1, "head_dim": 32,
}  # fmt: skip
TEXT = {"documents": 150, "row_length": 64, "rows": 8, "held_out_rows": 8, "measure_every": 6}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def training(**values: Any) -> dict[str, Any]:
    return {"steps": 12, "log_every": 1, "optimizer": {"learning_rate": 2e-2}} | values


def run(name: str, **stages: Any) -> Path:
    recipe = {
        "name": name, "seed": 1, "threads": 1, "data": {"kind": "pocket", "entities": 300}, "model": MODEL,
        "stages": {"tokenizer": {"documents": 150}, **stages},
    }  # fmt: skip
    Path(f"{name}.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["run", f"{name}.yaml"]) == 0
    return Path("runs") / name


def result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_checkpoints_on_the_way_open_and_their_mean_is_the_stages() -> None:
    stage = {**TEXT, "training": training(checkpoints={"every": 2, "keep": 3, "milestone_every": 4, "average": 3})}
    folder = run("kept", pretrain=stage) / "pretrain"
    kept = sorted((folder / "checkpoints").iterdir())
    assert [path.name for path in kept] == [f"step-{step:07}" for step in (4, 8, 10, 12)]
    mean = soup([weights(path) for path in kept[-3:]])
    assert equal(weights(folder / "checkpoint"), mean)
    model, words = load_checkpoint(kept[0])
    assert model.config.vocab_size == 416 and words.vocab_size <= 416
    plain = run("plain", pretrain={**TEXT, "training": training()}) / "pretrain"
    assert equal(weights(kept[-1]), weights(plain / "checkpoint"))
    assert result(folder)["held_out_loss"] != result(plain)["held_out_loss"]
    assert result(folder)["final_loss"] == result(plain)["final_loss"]


def test_a_moving_average_is_what_is_saved_and_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []

    def watched(model: Any, packed: Any, words: Any) -> dict[str, float]:
        numbers = held_out_loss(model, packed, words)
        measured.append(numbers["held_out_loss"])
        return numbers

    monkeypatch.setattr("minnow.recipe.stages.training.held_out_loss", watched)
    stage = {**TEXT, "training": training(optimizer={"learning_rate": 2e-2, "ema": 0.5})}
    folder = run("ema", pretrain=stage) / "pretrain"
    plain = run("plain", pretrain={**TEXT, "training": training()}) / "pretrain"
    assert not equal(weights(folder / "checkpoint"), weights(plain / "checkpoint"))
    assert len(measured) == 4 + 3 and result(folder)["held_out_loss"] == measured[3] != measured[2] == measured[6]


def test_a_ramp_reads_fewer_tokens_at_first() -> None:
    folder = run("ramp", pretrain={**TEXT, "ramp": {"steps": 6, "rows": 4, "length": 2}, "training": training()})
    assert result(folder / "pretrain")["tokens"] <= (3 * 2 + 3 * 4 + 6 * 8) * 64
    assert main(["run", "ramp.yaml", "--set", "stages.pretrain.rows=6"]) == 2


@pytest.fixture
def teacher() -> Path:
    return run("teacher", pretrain={**TEXT, "training": training(steps=30)}) / "pretrain/checkpoint"


def test_a_student_learns_from_a_cached_teacher_as_from_a_live_one(teacher: Path) -> None:
    stage = {"kind": "distil", "teacher": str(teacher), **TEXT, "training": training(), "distillation": {"k": 8}}
    cached = result(run("cached", distil=stage) / "distil")
    live = result(run("live", distil={**stage, "cached": False}) / "distil")
    # Some products round differently by the number of rows, which twelve steps at this rate make more of.
    assert cached["held_out_loss"] == pytest.approx(live["held_out_loss"], rel=1e-2)
    lines = [json.loads(line) for line in Path("runs/cached/distil/metrics.jsonl").read_text().splitlines()]
    logged = [line for line in lines if "teacher_divergence" in line]
    assert len(logged) == 12 and logged[-1]["teacher_divergence"] < 0.5 * logged[0]["teacher_divergence"]


def test_a_teacher_with_another_tokenizer_is_refused(teacher: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"kind": "distil", "teacher": str(teacher), **TEXT, "training": training()}
    recipe = yaml.safe_load(Path("teacher.yaml").read_text())
    recipe |= {"name": "other", "model": MODEL | {"vocab_size": 350}, "stages": {"tokenizer": {}, "distil": stage}}
    Path("other.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    assert main(["run", "other.yaml"]) == 2
    assert "another tokenizer" in capsys.readouterr().err
