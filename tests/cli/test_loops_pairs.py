"""minnow loops pairs from the command line: a checkpoint of another family, stopped and gone on with, and bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bad_server import Reply, bad_server, spoken
from foreign_folder import write_llama
from minnow.cli.main import main
from minnow.data.preference import read_preferences
from minnow.posttrain import pairs as pairs_module
from minnow.rollout import TorchEngine


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_llama(tmp_path_factory.mktemp("model") / "llama")


@pytest.fixture
def words(llama: Path, tmp_path: Path) -> list[str]:
    """A command for six prompts."""
    prompts = [{"id": i, "prompt": " ".join(f"{i}{c}" for c in "abcdefgh")} for i in range(6)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(map(json.dumps, prompts)))
    flags = ["--max-new-tokens", "250", "--score-gap", "0", "--loop-share", "1", "--temperatures", "1", "1", "1"]
    return ["loops", "pairs", str(llama), "--prompts", str(tmp_path / "prompts.jsonl"), *flags, "--judges", "rules"]


def test_a_stopped_command_goes_on_and_gives_the_same_pairs(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(pairs_module, "PROMPTS_AT_ONCE", 2)
    generate = TorchEngine.generate
    calls: list[int] = []

    def counted(self: TorchEngine, prompts: Any, sampling: Any) -> Any:
        calls.append(len(prompts))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return generate(self, prompts, sampling)

    monkeypatch.setattr(TorchEngine, "generate", counted)
    stopped, whole = tmp_path / "stopped.jsonl", tmp_path / "whole.jsonl"
    assert main([*words, "--out", str(stopped)]) == 130 and not stopped.exists()
    assert main([*words, "--out", str(stopped), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert calls == [8] * 4, "the first batch was kept, the second is asked again"
    assert main([*words, "--out", str(whole)]) == 0
    assert stopped.read_text() == whole.read_text()
    rows = [json.loads(line) for line in stopped.read_text().splitlines()]
    assert len(rows) == document["pairs"] == len(list(read_preferences(stopped))) > 0
    assert {row["model"] for row in rows} == {words[2]} and {tuple(row["judges"]) for row in rows} == {("rules",)}
    assert document["rollouts"] == 24 and document["judges"]["rules"]["failed"] == 0
    aside = [json.loads(line) for line in (tmp_path / "stopped.sft.jsonl").read_text().splitlines()]
    assert len(aside) == document["all_loop_prompts"]


def test_answers_are_paired_anew_with_other_settings(words: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    out = ["--out", str(tmp_path / "pairs.jsonl")]
    assert main([*words, *out]) == 0
    monkeypatch.setattr(TorchEngine, "generate", None)
    assert main([*words, *out, "--periods-kept", "1"]) == 0


def test_a_server_is_a_judge_by_its_name(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is asked in both orders; what it does not grade is told, and gives no pair."""
    monkeypatch.setenv("MINNOW_API_KEY", "sesame")

    def reply(body: dict[str, Any], _: int) -> Reply:
        text = body["messages"][-1]["content"]
        answers = json.loads(text[text.index('{\n "conversation"') :])["answers"]
        return spoken(json.dumps([min(10, len(answer) // 9) for answer in answers]))

    with bad_server(reply) as server:
        judge = f"tiny@{server.url}"
        assert main([*words[:-1], judge, "--out", str(tmp_path / "pairs.jsonl"), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    record = document["judges"][judge]
    assert record["failed"] == 0 and record["asked"] == len(server.bodies) > 0 and record["equal"] == 1.0
    assert {body["model"] for body in server.bodies} == {"tiny"}
    assert server.headers[0]["Authorization"] == "Bearer sesame"
    assert "sesame" not in "".join(file.read_text() for file in tmp_path.rglob("*.jsonl"))
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    assert all(row["judges"] == [judge] and 0 <= row["chosen_grade"] <= 1 for row in rows)


@pytest.mark.parametrize(
    ("more", "sentence"),
    [
        (["--score-gap", "1.1", "--no-loops-first"], "none of the 6 prompts gave a pair"),
        (["--judges", "gone"], "there is no judge 'gone'"),
        (["--judges", "rules", "rules"], "named twice"),
        (["--seed", "1"], None),
        (["--prompts", "nowhere.jsonl"], "nowhere.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_sentence(
    words: list[str], tmp_path: Path, more: list[str], sentence: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "pairs.jsonl")]
    if sentence is None:
        assert main([*words, *out]) == 0
        sentence = "was made with seed 0, not 1"
    assert main([*words, *out, *more]) == 2
    err = capsys.readouterr().err
    assert sentence in err and "Traceback" not in err
