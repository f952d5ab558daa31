"""minnow eval from the command line: a server, a checkpoint and its GGUF file, tasks by name and by file."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bad_server import Reply, bad_server, refusal, spoken
from minnow.cli import main
from minnow.data.tokenizer import Tokenizer
from minnow.loops import Rate
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint
from minnow.tasks.builtin import built_in
from minnow.train import precision

Run = Callable[..., Any]
ROUND = "The list begins:" + " Velm and Osk," * 60


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command's JSON document, its text where ``as_text``, or its one sentence where it is refused."""

    def ask(*words: str | Path, code: int = 0, as_text: bool = False) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), *([] if as_text or code else ["--json"])]) == code
        out, err = capsys.readouterr()
        if code:
            assert out == "" and "Traceback" not in err, err
            return err.splitlines()[-1]
        return out if as_text else json.loads(out)

    return ask


@pytest.fixture
def sums(tmp_path: Path) -> Path:
    """A user's task with ten sums, one of them in a bad row."""
    rows = [json.dumps({"id": i, "prompt": f"What is 1 + {i}?", "answer": 1 + i}) for i in range(10)]
    rows[5] = '{"prompt": "no answer"}'
    (tmp_path / "sums.jsonl").write_text("\n".join(rows))
    file = tmp_path / "sums.yaml"
    file.write_text("name: sums\nverifier: number\nheld_out: sums.jsonl\nmax_new_tokens: 300\n")
    return file


def reply(body: dict[str, Any], _: int) -> Reply:
    number = int(body["messages"][-1]["content"].split()[-1].rstrip("?"))
    special = {0: spoken(ROUND, "length"), 1: spoken("It is 2", "length"), 2: refusal(400, "too hard"), 3: spoken("5")}
    return special.get(number, spoken(f"<think>1 + 1?</think>That makes {number + 1}."))


def test_a_server_is_scored(run: Run, sums: Path, tmp_path: Path) -> None:
    with bad_server(reply) as server:
        words = ["eval", server.url, "--model", "tiny", "--tasks", sums, "--out", tmp_path / "out"]
        assert "line 6 of" in run(*words, code=2)
        document = run(*words, "--skip-bad-rows")
        assert document == json.loads((tmp_path / "out/evaluation.json").read_text())
        asked = len(server.bodies)
        text = run(*words, "--skip-bad-rows", as_text=True)
        assert len(server.bodies) == asked + 1, "only the refused prompt is asked again"
    found = document["tasks"]["sums"]
    assert found["correct"] == Rate(5, 8).as_dict() and found["loops"] == Rate(1, 8).as_dict()
    assert (found["n"], found["failed"], found["truncated"], found["too_long"]) == (8, 1, 1, 0)
    assert (found["temperature"], found["max_new_tokens"]) == (0.0, 300) and "line 6" in found["bad_rows"][0]
    assert [each["reason"] for each in found["wrong"]] == ["loops", "does not end", "answered 5, not 4"]
    assert "5/8" in text and "1 bad rows left out" in text and "12.5%" in text


def test_a_checkpoint_and_its_gguf_file_on_the_pocket_world(
    run: Run, tmp_path: Path, tiny_model: Backbone, words: Tokenizer, sums: Path
) -> None:
    folder = tmp_path / "run"
    save_checkpoint(tiny_model, words, folder / "sft/checkpoint")
    (folder / "sft/done.json").write_text("{}")
    recipe = {"name": "toy", "seed": 0, "data": {"kind": "pocket", "entities": 200}, "stages": {"sft": {}}}
    (folder / "recipe.json").write_text(json.dumps({"recipe": recipe}))
    words_of = ["--tasks", f"arithmetic,search,{sums}", "--n", "4", "--max-new-tokens", "12", "--skip-bad-rows"]
    document = run("eval", folder, *words_of)
    assert list(document["tasks"]) == ["arithmetic", "search", "sums"] and document["runtime"] == "torch"
    assert all(found["correct"]["total"] == 4 and found["max_new_tokens"] == 12 for found in document["tasks"].values())
    assert run("export", folder, "--type", "F32", "--out", folder / "sft/checkpoint")
    (file,) = (folder / "sft/checkpoint").glob("*.gguf")
    other = run("eval", file, *words_of)
    assert other["runtime"] == "llama.cpp" and list(other["tasks"]) == list(document["tasks"])


def test_prompts_beyond_the_context_are_left_out(
    run: Run, tmp_path: Path, tiny_model: Backbone, words: Tokenizer
) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    rows = [{"prompt": "word " * length, "answer": "x"} for length in (3, 3000)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "task.yaml").write_text("name: lengths\nverifier: exact\nheld_out: rows.jsonl\nmax_new_tokens: 4\n")
    document = run("eval", tmp_path / "model", "--tasks", tmp_path / "task.yaml")
    assert (document["tasks"]["lengths"]["n"], document["tasks"]["lengths"]["too_long"]) == (1, 1)
    assert "no prompt of the task 'lengths'" in run(
        "eval", tmp_path / "model", "--tasks", tmp_path / "task.yaml", "--max-new-tokens", "2047", code=2
    )
    assert "belongs to no run" in run("eval", tmp_path / "model", "--tasks", "arithmetic", code=2)


def test_bits_per_byte_of_a_file(run: Run, tmp_path: Path, tiny_model: Backbone, words: Tokenizer) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    (tmp_path / "text.jsonl").write_text("\n".join(json.dumps({"text": "The town of Vell. " * n}) for n in (1, 2, 300)))
    name = f"bits-per-byte={tmp_path / 'text.jsonl'}"
    found = run("eval", tmp_path / "model", "--tasks", name)["texts"][name]
    assert found["documents"] == 3 and found["bytes"] == 18 * 303 and found["bits_per_byte"]["n"] == 3
    assert run("eval", tmp_path / "model", "--tasks", name, "--n", "2")["texts"][name]["bytes"] == 18 * 3
    assert "over 3 documents" in run("eval", tmp_path / "model", "--tasks", name, as_text=True)
    assert "bits-per-byte=FILE" in run("eval", tmp_path / "model", "--tasks", "bits-per-byte", code=2)
    assert "no log-likelihoods" in run("eval", "http://localhost:1/v1", "--model", "m", "--tasks", name, code=2)


@pytest.mark.parametrize(
    "words, said",
    [
        (["--tasks", ","], "names no task"),
        (["--tasks", "sumz.yaml"], "no task file"),
        (["--tasks", "arithmetik"], "did you mean arithmetic"),
        (["--tasks", "arithmetic", "--n", "0"], "at least 1 example"),
        (["--tasks", "arithmetic", "--temperature", "-1"], "cannot be sampled"),
    ],
)
def test_bad_input_is_a_sentence(run: Run, words: list[str], said: str) -> None:
    assert said in run("eval", "http://localhost:1/v1", "--model", "tiny", *words, code=2)


def test_a_server_is_held_in_conversation(run: Run) -> None:
    examples = {each.messages[0]["content"]: each for each in built_in("file-requests", {}).examples("held_out", 4)}
    lazy = next(iter(examples))

    def next_turn(body: dict[str, Any], _: int) -> Reply:
        example = examples[body["messages"][0]["content"]]
        turns = [each["content"] for each in example.reference if each["role"] == "assistant"]
        said = sum(each["role"] == "assistant" for each in body["messages"])
        assert all("tool_call_id" in each for each in body["messages"] if each["role"] == "tool")
        return spoken("Done." if example.messages[0]["content"] == lazy else turns[said])

    with bad_server(next_turn) as server:
        found = run("eval", server.url, "--model", "tiny", "--tasks", "file-requests", "--n", 4)["tasks"][
            "file-requests"
        ]
    assert found["correct"] == Rate(3, 4).as_dict() and found["failed"] == 0
    assert found["wrong"][0]["reason"] == "turn 1 makes no call" and 0 < found["metrics"]["turns"]["mean"] < 1


def test_threads_are_those_measured_fastest(
    run: Run, tmp_path: Path, tiny_model: Backbone, words: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    monkeypatch.setattr(precision, "_probe_seconds", lambda threads: abs(threads - 2))
    before = torch.get_num_threads()
    try:
        for more, wanted in (((), min(2, len(os.sched_getaffinity(0)))), (("--threads", 1), 1)):
            run("eval", tmp_path / "model", "--tasks", "receipts", "--n", 1, "--max-new-tokens", 2, *more)
            assert torch.get_num_threads() == wanted
    finally:
        torch.set_num_threads(before)
