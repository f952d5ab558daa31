"""recipes/books.yaml end to end on a small corpus, as a file of texts and as one plain text."""

from __future__ import annotations

import json
import lzma
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from minnow.cli.main import main
from minnow.data import read_documents, train_tokenizer
from minnow.recipe.report.markup import bytes_text, counted, number
from minnow.recipe.schema import load_recipe
from minnow.recipe.stages.texts import held_out_documents, training_texts
from minnow.tasks import PocketWorld

RECIPE = Path(__file__).resolve().parents[2] / "recipes/books.yaml"
TINY = (
    "threads=1",
    "model.vocab_size=400",
    "model.hidden_size=64",
    "model.intermediate_size=64",
    "model.layers=[conv,attn]",
    "model.heads=2",
    "model.kv_heads=1",
    "stages.pretrain.row_length=64",
    "stages.pretrain.rows=8",
    "stages.pretrain.held_out_rows=8",
    "stages.pretrain.measure_every=4",
    "stages.pretrain.training={steps: 8, log_every: 1, optimizer: {learning_rate: 2e-2}}",
    "stages.measure={kind: measure-text, rows: 8, row_length: 64, prompts: 6, prompt_tokens: 12, max_new_tokens: 64}",
    "stages.measure.temperatures=[0.0, 1.0]",
    "stages.export={checkpoint: pretrain, types: [F16], positions: 200}",
    "stages.profile={export: export, prompts: [32], decode_depths: [16], repeats: 2}",
)


@pytest.fixture(scope="module")
def pages() -> list[str]:
    return [f"{page.title}\n\n{page.text}" for page in PocketWorld(5, 300).pages()]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def write_corpus(name: str, pages: list[str]) -> Path:
    path = Path(name)
    if name.endswith(".jsonl.xz"):
        path.write_bytes(lzma.compress("".join(json.dumps({"body": page}) + "\n" for page in pages).encode()))
    else:
        path.write_text("\n\n".join(pages))
    return path


def result(stage: str) -> dict[str, Any]:
    return json.loads(Path(f"runs/books/{stage}/result.json").read_text())


@pytest.mark.parametrize(("name", "field"), [("pages.jsonl.xz", "body"), ("pages.txt", "text")])
def test_books_runs_from_a_file_to_the_report(
    name: str, field: str, pages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    write_corpus(name, pages)
    overrides = [*TINY, f"data.path={name}", f"data.text_field={field}"]
    command = ["run", str(RECIPE), "--json", *(flag for override in overrides for flag in ("--set", override))]
    assert main(command) == 0
    summary = json.loads(capsys.readouterr().out)
    stages = ["tokenizer", "pretrain", "measure", "export", "profile", "report"]
    assert [(row["stage"], row["status"]) for row in summary["stages"]] == [(stage, "ran") for stage in stages]

    trained, measured = result("pretrain"), result("measure")
    curve = [json.loads(line) for line in Path("runs/books/pretrain/metrics.jsonl").read_text().splitlines()]
    bits = [line["bits_per_byte"] for line in curve if "bits_per_byte" in line]
    assert len(bits) == 3 and bits[-1] == trained["bits_per_byte"] < 0.95 * bits[0]
    assert abs(measured["bits_per_byte"] - trained["bits_per_byte"]) < 0.5
    assert [loops["temperature"] for loops in measured["loops"]] == [0.0, 1.0]
    assert [loops["total"] for loops in measured["loops"]] == [6, 6]
    assert result("export")["files"][0]["positions"] >= 200
    page = Path("runs/books/report.html").read_text()
    file = result("export")["files"][0]
    assert number(trained["bits_per_byte"], 3) in page and f"F16: {bytes_text(file['bytes'])}" in page
    for loops in measured["loops"]:
        assert counted(loops) in page

    assert main(command) == 0
    assert {row["status"] for row in json.loads(capsys.readouterr().out)["stages"]} == {"kept"}


def test_one_text_in_few_documents_gives_a_twentieth_of_itself_to_be_measured_on(pages: list[str]) -> None:
    text = "\n\n".join(pages)
    for copies in (1, 4):
        path = write_corpus("pages.txt", pages * copies)
        documents = len(list(read_documents(path)))
        recipe = load_recipe(RECIPE, [f"data.path={path}"])
        words = train_tokenizer(training_texts(recipe, 0), 300)
        joined = "".join(training_texts(recipe, 0))
        held_out = "".join(words.decode(ids) for ids in held_out_documents(recipe, words))
        assert documents < 20 and joined + held_out == path.read_text()
        assert 0.04 < len(held_out) / (len(text) * copies) < 0.06
