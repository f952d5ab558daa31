"""Recipes over several sources of text: mixtures, tokenised corpora, mid-training, and what is wrong with them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from minnow.cli.main import main
from minnow.data import Tokenizer, tokenize_corpus, train_tokenizer
from minnow.data.tokenizing import read_files
from minnow.tasks import PocketWorld

MODEL = {
    "vocab_size": 400, "hidden_size": 64, "intermediate_size": 64, "layers": ["conv", "attn"], "heads": 2,
    "kv_heads": 1, "head_dim": 32,
}  # fmt: skip
TRAINING = {"steps": 6, "log_every": 1, "optimizer": {"learning_rate": 2e-2}}
PRETRAIN = {"row_length": 64, "rows": 8, "held_out_rows": 8, "measure_every": 6, "training": TRAINING}


@pytest.fixture(autouse=True)
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Tokenizer]:
    """``pages`` in two JSON lines files with a difficulty, ``notes`` in a text, ``corpus`` tokenised with held-out ones."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    pages = [page.text for page in PocketWorld(5, 300).pages()][:240]
    rows = [json.dumps({"body": page, "grade": n % 3}) + "\n" for n, page in enumerate(pages)]
    Path("pages-0.jsonl").write_text("".join(rows[:100]))
    Path("pages-1.jsonl").write_text("".join(rows[100:]))
    Path("notes.txt").write_text("\n\n".join(pages[:60]))
    words = train_tokenizer(pages, 400)
    words.save(Path("words"))
    for folder, held_out in (("corpus", False), ("corpus/held-out", True)):
        read = read_files(["pages-0.jsonl"], "body", "grade", held_out)
        tokenize_corpus(read, words, folder, {}, graded=True)
    yield words
    torch.set_num_threads(threads)


def run(sources: dict[str, Any], **stages: Any) -> int:
    recipe = {
        "name": "mix", "seed": 1, "threads": 1, "data": {"kind": "text", "sources": sources}, "model": MODEL,
        "stages": {"tokenizer": {"path": "words"}, **stages},
    }  # fmt: skip
    Path("mix.yaml").write_text(yaml.safe_dump(recipe, sort_keys=False))
    return main(["run", "mix.yaml"])


def result(stage: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/mix/{stage}/result.json").read_text())


def test_pretraining_and_mid_training_read_their_mixtures(capsys: pytest.CaptureFixture[str]) -> None:
    sources = {
        "pages": {"path": "pages-*.jsonl", "text_field": "body", "weight": 0.5, "fill_in": 0.5},
        "notes": {"path": "notes.txt", "weight": 0.25, "epochs": 1},
        "corpus": {"path": "corpus", "weight": 0.25, "easy_to_hard": True},
    }
    middle = {
        "kind": "pretrain", "checkpoint": "pretrain", "row_length": 128, "rows": 4, "held_out_rows": 8,
        "mixture": {"corpus": 0.75, "pages": 0.25}, "packing": "best-fit", "input_dropout": 0.1,
        "training": TRAINING | {"decay": 1.0, "optimizer": {"learning_rate": 1e-3}},
    }  # fmt: skip
    assert run(sources, pretrain=PRETRAIN, middle=middle) == 0
    first, second = result("pretrain"), result("middle")
    assert set(first["sources"]) == {"pages", "notes", "corpus"} and set(second["sources"]) == {"corpus", "pages"}
    assert first["sources"]["pages"] > 0 and 0 < first["sources"]["notes"] <= 1
    assert result("tokenizer")["bytes_per_token"] > 1
    # It goes on from what was learnt: better at once than the other's first measurement.
    lines = [json.loads(line) for line in Path("runs/mix/middle/metrics.jsonl").read_text().splitlines()]
    measured = [line["held_out_loss"] for line in lines if "held_out_loss" in line]
    begun = [json.loads(line) for line in Path("runs/mix/pretrain/metrics.jsonl").read_text().splitlines()]
    assert measured[0] < next(line["held_out_loss"] for line in begun if "held_out_loss" in line) - 0.5
    capsys.readouterr()
    assert main(["run", "mix.yaml", "--json"]) == 0
    assert {row["status"] for row in json.loads(capsys.readouterr().out)["stages"]} == {"kept"}
    # What shards hold counts, by their manifest.
    manifest = Path("corpus/manifest.json")
    manifest.write_text(manifest.read_text() + "\n")
    assert main(["run", "mix.yaml", "--json", "--only", "tokenizer"]) == 0
    assert json.loads(capsys.readouterr().out)["stages"][0]["status"] == "ran"


def refused(capsys: pytest.CaptureFixture[str], sources: dict[str, Any], **stages: Any) -> str:
    assert run(sources, **(stages or {"pretrain": PRETRAIN})) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minnow: ")]
    assert len(lines) == 1
    return lines[0]


def test_what_is_wrong_with_a_mixture_is_one_sentence(capsys: pytest.CaptureFixture[str], sources: Tokenizer) -> None:
    pages: dict[str, Any] = {"path": "pages-0.jsonl", "text_field": "body", "weight": 0.5}
    corpus: dict[str, Any] = {"path": "corpus", "weight": 0.5}
    assert "data: the mixture's weights add up to 0.9, not 1" in refused(
        capsys, {"pages": pages, "corpus": corpus | {"weight": 0.4}}
    )
    assert "every weight is above 0" in refused(
        capsys, {"pages": pages | {"weight": 1.5}, "corpus": corpus | {"weight": -0.5}}
    )
    assert "data.sources.pages.path: gone.jsonl does not exist" in refused(
        capsys, {"pages": pages | {"path": "gone.jsonl", "weight": 1}}
    )
    both = {"pages": pages, "corpus": corpus}
    assert "names the source 'page'; did you mean pages?" in refused(
        capsys, both, pretrain=PRETRAIN | {"mixture": {"page": 1.0}}
    )
    assert "run dry after" in refused(
        capsys, {"corpus": corpus | {"weight": 1, "epochs": 0.1}}, pretrain=PRETRAIN | {"rows": 2}
    )
    assert "has no field 'bdy', only 'body', 'grade'; did you mean 'body'?" in refused(
        capsys, {"pages": pages | {"text_field": "bdy", "weight": 1}}
    )
    assert "is not graded; tokenise it with a difficulty field" in refused(
        capsys, {"pages": pages | {"easy_to_hard": True, "weight": 1}}
    )
    assert "source corpus is tokenised already; name the folder of its tokenizer" in refused(
        capsys, {"corpus": corpus | {"weight": 1}}, tokenizer={}, pretrain=PRETRAIN
    )
    shard = Path("corpus/00000.tokens")
    shard.write_bytes(shard.read_bytes()[:-1] + b"x")
    assert "corpus/00000.tokens is damaged (its checksum differs)" in refused(capsys, both)
    shard.write_bytes(shard.read_bytes()[:-1])
    assert "corpus/00000.tokens has" in refused(capsys, both)
