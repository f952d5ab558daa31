"""minnow agent and minnow index from the command line: a server that calls, and a model at hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bad_server import Reply, bad_server, refusal, spoken
from minnow.cli import main


@pytest.fixture
def notes(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "velm.md").write_text("Velm lies on the Osk. Its mayor is Dana Pryl.")
    (folder / "tarn.html").write_text("<title>Tarn</title><p>Tarn lies by a lake.")
    (folder / "scan.txt").write_text("")
    return folder


def answers(body: dict[str, Any], _: int) -> Reply:
    if body["messages"][-1]["role"] == "user":
        return spoken('<tool_call>{"name": "web_search", "arguments": {"query": "mayor of Velm"}}</tool_call>')
    return spoken("It is Dana Pryl.")


def test_a_question_is_looked_up_in_an_index(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["index", str(notes), "--json"]) == 0
    out, err = capsys.readouterr()
    made = json.loads(out)
    assert (made["pages"], made["index"]) == (2, str(notes) + ".index") and "scan.txt: it is empty" in err
    with bad_server(answers) as server:
        words = ["agent", server.url, "Who is the mayor of Velm?", "--model", "m", "--search", made["index"]]
        assert main(words) == 0
        text = capsys.readouterr().out
        assert "→ web_search(query='mayor of Velm')" in text and "It is Dana Pryl.\n[answer; 1 calls" in text
        assert main([*words, "--json"]) == 0
    trace = json.loads(capsys.readouterr().out)
    assert (trace["finish"], trace["answer"], trace["tools"]) == (
        "answer", "It is Dana Pryl.", ["web_search", "open_page"],
    )  # fmt: skip
    assert "velm.md" in trace["calls"][0]["result"] and [m["role"] for m in trace["messages"]] == [
        "user", "assistant", "tool", "assistant",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["agent", "{url}", " ", "--model", "m"], "the question is empty"),
        (["agent", "{url}", "Who?", "--model", "m", "--search", "nowhere"], "there is no folder nowhere"),
        (["agent", "{url}", "Who?", "--model", "m", "--tools", "search"], "nothing to search"),
        (["agent", "{url}", "Who?", "--model", "m"], "gave no answer (HTTP 400: no)"),
        (["agent", "{url}", "Who?", "--model", "m", "--map-reduce"], "name one with --document"),
        (["agent", "{url}", "Who?", "--model", "m", "--document", "nowhere"], "nowhere cannot be read"),
        (["agent", "{url}", "Who?", "--model", "m", "--max-calls", "-1"], "bound no conversation"),
        (["index", "nowhere"], "there is no folder nowhere"),
    ],
)
def test_bad_input_is_one_sentence(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with bad_server(lambda body, n: refusal(400, "no")) as server:
        assert main([word.replace("{url}", server.url) for word in words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err.replace('{"error": {"message": "no"}}', "no") and "Traceback" not in err


def test_a_long_document_is_asked_in_parts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "long.txt"
    file.write_text("The town has a market. " * 500 + "Its mayor is Dana Pryl. " + "The town has a market. " * 500)

    def say(body: dict[str, Any], _: int) -> Reply:
        return spoken("Dana Pryl" if "Dana Pryl" in body["messages"][0]["content"] else "nothing")

    with bad_server(say) as server:
        words = ["agent", server.url, "Who?", "--model", "m", "--document", str(file), "--map-reduce", "--json"]
        assert main(words) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["answer"] == "Dana Pryl" and len(said["asked"]) > 5


def test_what_is_read_and_said_does_not_drive_the_terminal(notes: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (notes / "velm.md").write_text("Velm's mayor is \x1b[2J\x9bDana Pryl.")
    turns = iter([answers({"messages": [{"role": "user"}]}, 0), spoken("It is \x1b]0;x\x07Dana Pryl.")])
    with bad_server(lambda body, n: next(turns)) as server:
        assert main(["agent", server.url, "Who?", "--model", "m", "--search", str(notes)]) == 0
    text = capsys.readouterr().out
    assert "Velm's mayor is [2JDana Pryl." in text and "\nIt is ]0;xDana Pryl.\n" in text
    assert not {"\x1b", "\x07", "\x9b"} & set(text)
