"""The recipes we ship, given bad input through the command line: one sentence, exit code 2, nothing half done."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from minnow.cli.main import main

RECIPES = Path(__file__).resolve().parents[2] / "recipes"
TINY_BOOKS = (
    "threads=1",
    "model.vocab_size=300",
    "model.hidden_size=32",
    "model.intermediate_size=32",
    "model.layers=[conv]",
    "model.heads=1",
    "model.kv_heads=1",
    "stages.pretrain.row_length=32",
    "stages.pretrain.training.steps=2",
)


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def refuse(capsys: pytest.CaptureFixture[str], recipe: str, *overrides: str) -> str:
    """Run a recipe that must be refused; returns the sentence without ``minnow: ``."""
    flags = [flag for override in overrides for flag in ("--set", override)]
    assert main(["run", str(RECIPES / recipe), *flags]) == 2
    out, err = capsys.readouterr()
    *log, sentence = err.splitlines()
    assert out == "" and "Traceback" not in err and not any(line.startswith("minnow: ") for line in log)
    assert sentence.startswith("minnow: ")
    return sentence.removeprefix("minnow: ")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("sed=3", "sed: unknown key; did you mean seed?"),
        ("data.entitis=3", "data.entitis: unknown key; did you mean entities?"),
        ("model.hiden_size=3", "model.hiden_size: unknown key; did you mean hidden_size?"),
        ("stages.pretrian.rows=3", "the recipe has no stage 'pretrian'; did you mean pretrain?"),
        ("stages.tokenizer.document=3", "stages.tokenizer.document: unknown key; did you mean documents?"),
        ("stages.pretrain.row_lenght=3", "stages.pretrain.row_lenght: unknown key; did you mean row_length?"),
        ("stages.pretrain.training.step=3", "stages.pretrain.training.step: unknown key; did you mean steps?"),
        ("stages.sft.training.optimizer.lr=3", "stages.sft.training.optimizer.lr: unknown key; "),
        ("stages.sft.example=3", "stages.sft.example: unknown key; did you mean examples?"),
        ("stages.measure-sft.temperature=0", "stages.measure-sft.temperature: unknown key; did you mean temperatures?"),
        ("stages.pairs.pairs.scoregap=1", "stages.pairs.pairs.scoregap: unknown key; did you mean score_gap?"),
        ("stages.dpo.objective.betta=1", "stages.dpo.objective.betta: unknown key; did you mean beta?"),
        ("stages.dpo.gate.evry=1", "stages.dpo.gate.evry: unknown key; did you mean every?"),
        ("stages.grpo.rollouts.prompt=1", "stages.grpo.rollouts.prompt: unknown key; did you mean prompts?"),
        ("stages.merge.share=[0.5]", "stages.merge.share: unknown key; did you mean shares?"),
        ("stages.export.type=[F16]", "stages.export.type: unknown key; did you mean types?"),
        ("stages.profile.repeat=3", "stages.profile.repeat: unknown key; did you mean repeats?"),
        ("stages.agent.question=3", "stages.agent.question: unknown key; did you mean questions?"),
        ("stages.report.title=x", "stages.report.title: unknown key; none can be given here"),
        (
            "stages.dpo.checkpoint=stf",
            "stages.dpo reads stage 'stf', which the recipe does not have; did you mean sft?",
        ),
        ("stages.pairs.checkpoint=grpo", "stages.pairs reads stage 'grpo', which comes after it; move grpo before"),
        ("stages.sft.kind=stf", "stages.sft: there is no stage kind 'stf'; did you mean sft?"),
        ("stages.sft.training.steps=many", "stages.sft.training.steps: expected a whole number, got 'many'"),
    ],
)
def test_a_wrong_key_is_named_with_the_nearest_right_one(
    capsys: pytest.CaptureFixture[str], override: str, said: str
) -> None:
    assert said in refuse(capsys, "pocket.yaml", override)
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("recipe", "override", "said"),
    [
        ("pocket.yaml", "stages.export.types=[Q3_K]", "Q3_K"),
        ("pocket.yaml", "model.heads=3", "heads"),
        ("pocket.yaml", "stages.sft.more.arithmetics=3", "arithmetics"),
        ("pocket.yaml", "stages.measure-sft.tasks=[arithmetics]", "arithmetics"),
        ("pocket.yaml", "stages.pretrain.rows=0", "rows"),
        ("pocket.yaml", "stages.profile.repeats=1", "repeats is 1"),
        ("pocket.yaml", "stages.measure-sft.loop_prompts=0", "loop_prompts is 0"),
        ("pocket.yaml", "stages.measure-sft.temperatures=[-1]", "temperature"),
    ],
)
def test_a_value_that_no_stage_can_use_is_refused_before_anything_is_trained(
    capsys: pytest.CaptureFixture[str], recipe: str, override: str, said: str
) -> None:
    assert said in refuse(capsys, recipe, override)
    assert not Path("runs").exists()


def test_books_without_a_file_says_how_to_name_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert "name it with data.path in the recipe or --set data.path=FILE" in refuse(capsys, "books.yaml")
    assert "data.path: gone.txt does not exist; check the path" in refuse(capsys, "books.yaml", "data.path=gone.txt")
    Path("texts").mkdir()
    assert "texts is a folder; name one file in it" in refuse(capsys, "books.yaml", "data.path=texts")
    Path("book.pdf").write_bytes(b"%PDF")
    assert "book.pdf is of an unknown kind; use .txt" in refuse(capsys, "books.yaml", "data.path=book.pdf")


def test_a_corpus_that_holds_nothing_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    for content in ("", " \n\n"):
        Path("empty.txt").write_text(content)
        said = refuse(capsys, "books.yaml", "data.path=empty.txt", *TINY_BOOKS)
        assert said == "empty.txt holds no text; give a corpus that is not empty"
    assert not Path("runs/books/tokenizer/done.json").exists()


def test_a_corpus_that_is_not_utf8_is_refused_with_the_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("latin.txt").write_bytes(b"Caf\xe9 au lait")
    said = refuse(capsys, "books.yaml", "data.path=latin.txt", *TINY_BOOKS)
    assert said.startswith("latin.txt is not UTF-8 text at byte 3; convert it, for example with `iconv")


def test_a_corpus_shorter_than_one_batch_is_refused_with_numbers_and_a_remedy(
    capsys: pytest.CaptureFixture[str],
) -> None:
    texts = [f"The {n}th lighthouse of Vell has {n * 7} steps." for n in range(30)]
    Path("short.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    said = refuse(capsys, "books.yaml", "data.path=short.jsonl", *TINY_BOOKS, "stages.pretrain.rows=400")
    assert (
        said.startswith("the corpus is shorter than one batch: it fills ")
        and "of 32 tokens, and a batch takes 400; " in said
    )
    rows = int(said.split("use batches of at most ")[1].split()[0])
    flags = [*TINY_BOOKS, f"stages.pretrain.rows={rows}", "data.path=short.jsonl"]
    assert (
        main(["run", str(RECIPES / "books.yaml"), "--only", "pretrain", *(f for o in flags for f in ("--set", o))]) == 0
    )
