"""``minnow data`` end to end: cleaned, tokenised, inspected, and what is wrong in one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from minnow.cli.main import main
from minnow.data import Corpus, train_tokenizer

TEXTS = [f"The {n}th lighthouse of Vell has {n * 7} steps and a keeper who counts them every night." for n in range(60)]
QUESTION = "Which of the nine lighthouses on the coast of Vell has the fewest steps of all?"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_tokenizer(TEXTS, 400).save(Path("words"))
    rows: list[dict[str, Any]] = [{"text": text, "grade": n % 4} for n, text in enumerate(TEXTS)]
    rows.insert(10, {"text": TEXTS[3].upper(), "grade": 0})
    rows.insert(20, {"text": f"Quiz night. {QUESTION} Answers on a card.", "grade": 0})
    Path("raw-0.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:30]))
    Path("raw-1.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[30:]))
    Path("test.jsonl").write_text(json.dumps({"id": 1, "question": QUESTION, "choices": ["a", "b"]}) + "\n")


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert main(["data", *words, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_clean_tokenise_and_inspect(capsys: pytest.CaptureFixture[str]) -> None:
    clean = ("clean", "raw-*.jsonl", "--out", "clean.jsonl.gz", "--keep", "grade", "--against", "test.jsonl")
    numbers = answer(capsys, *clean)
    assert numbers == {"file": "clean.jsonl.gz", "read": 62, "copies": 1, "in evaluation sets": 1, "kept": 60}
    with gzip.open("clean.jsonl.gz", "rt") as lines:
        assert [json.loads(line) for line in lines] == [{"text": t, "grade": n % 4} for n, t in enumerate(TEXTS)]
    before = Path("clean.jsonl.gz").read_bytes()
    answer(capsys, *clean)
    assert Path("clean.jsonl.gz").read_bytes() == before

    tokenize = ("tokenize", "clean.jsonl.gz", "--out", "corpus", "--tokenizer", "words", "--processes", "0")
    made = answer(capsys, *tokenize, "--hold-out", "--difficulty-field", "grade", "--shard-tokens", "500")
    assert (made["documents"], made["held_out"]["documents"], made["graded"]) == (57, 3, True)
    corpus = Corpus("corpus")
    assert made["tokens"] == corpus.tokens and made["shards"] == len(corpus.shards) > 2
    seen = answer(capsys, "inspect", "corpus", "--verify")
    assert seen == {**{name: value for name, value in made.items() if name != "held_out"}, "verified": True}
    assert main(["data", "inspect", "corpus/held-out"]) == 0
    assert "documents" in capsys.readouterr().out


def test_what_is_wrong_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    tokenize = ["data", "tokenize", "raw-0.jsonl", "--out", "corpus", "--tokenizer", "words", "--processes", "0"]
    cases: list[tuple[list[str], str]] = [
        ([*tokenize, "--text-field", "txt"], "line 1 of raw-0.jsonl has no field 'txt'"),
        ([*tokenize[:2], "none-*.jsonl", *tokenize[3:]], "no file matches none-*.jsonl"),
        ([*tokenize, "--fill-in", "2"], "is 2; use 0 to 1"),
        ([*tokenize, "--processes", "-1"], "processes is -1"),
        (["data", "inspect", "words"], "words holds no manifest.json of a tokenised corpus"),
        (["data", "clean", "raw-0.jsonl", "--out", "x.txt"], "x.txt is written as JSON lines"),
        (["data", "clean", "raw-0.jsonl", "--out", "x.jsonl", "--keep", "grad"], "has no field 'grad'"),
    ]
    for words, sentence in cases:
        assert main(words) == 2
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("minnow: ")]
        assert len(said) == 1 and sentence in said[0], said
    assert not Path("x.jsonl").exists() and not Path("corpus/manifest.json").exists()
