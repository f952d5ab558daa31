"""minnow loops measure and compare from the command line: servers, built-in prompts, files that go on, paired tables."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bad_server import Reply, bad_server, refusal, spoken
from minnow.cli import main
from minnow.data.tokenizer import Tokenizer
from minnow.evaluate.survey import read_answers
from minnow.loops import RULES, Paired, Rate, find_text_loop
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import save_checkpoint

ROUND = "The list begins:" + " Velm and Osk," * 60
Run = Callable[..., Any]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command's JSON document, its text where ``as_text``, or its one sentence where it is refused."""

    def ask(*words: str | Path, code: int = 0, as_text: bool = False) -> Any:
        capsys.readouterr()
        assert main([*map(str, words), *([] if as_text or code else ["--json"])]) == code
        out, err = capsys.readouterr()
        if code:
            assert out == "" and err.count("minnow: ") == 1 and "Traceback" not in err, err
            return err.splitlines()[-1]
        return out if as_text else json.loads(out)

    return ask


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    """Ten prompts of two tasks."""
    file = tmp_path / "prompts.jsonl"
    rows = [{"id": i, "prompt": f"prompt {i}", "task": "even" if i % 2 == 0 else "odd"} for i in range(10)]
    file.write_text("\n".join(map(json.dumps, rows)))
    return file


def loops_on(*numbers: int) -> Callable[[dict[str, Any], int], Reply]:
    def reply(body: dict[str, Any], _: int) -> Reply:
        number = int(body["messages"][-1]["content"].split()[-1])
        return spoken(ROUND, "length", tokens=300) if number in numbers else spoken("Fine.", tokens=3)

    return reply


def test_a_server_is_measured(run: Run, prompts: Path) -> None:
    with bad_server(loops_on(1, 2, 3)) as server:
        words = ["loops", "measure", server.url, "--model", "tiny", "--prompts", prompts, "--temperature", "0", "0.7"]
        document = run(*words, "--samples", "2", "--max-new-tokens", "300")
    assert document["model"] == f"tiny at {server.url}" and document["runtime"] == "server"
    assert (document["n"], document["failed"], document["stop_on_loop"]) == (10, [], False)
    greedy, sampled = document["loops"]
    assert {key: greedy[key] for key in ("count", "total", "rate", "low", "high")} == Rate(3, 10).as_dict()
    assert (sampled["count"], sampled["total"]) == (6, 20), "two samples of each at 0.7, greedy answers once"
    assert greedy["by_task"] == {"even": Rate(1, 5).as_dict(), "odd": Rate(2, 5).as_dict()}
    assert greedy["causes"] == {"loop": 3} and greedy["truncated"] == 0
    loop = find_text_loop(ROUND)
    assert loop is not None and greedy["median_onset"] == round(300 * loop.onset / len(ROUND))
    assert greedy["wasted_of_all"] == round(3 * (300 - greedy["median_onset"]) / (3 * 300 + 7 * 3), 4)
    assert list(greedy["rules"]) == ["minnow", "minnow-watch", *RULES] and len(greedy["agreement"]) == 66
    assert document["sets"] == {str(prompts): document["loops"]}
    assert document["examples"][0]["onset_character"] == loop.onset
    seeds = {(body["temperature"], body["seed"]) for body in server.bodies}
    assert len(seeds) == 3 and all(body["max_tokens"] == 300 for body in server.bodies)


def test_failed_requests_are_in_no_rate_and_named(run: Run, prompts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the key goes to the server and nowhere else."""
    monkeypatch.setenv("MY_KEY", "sesame")
    plain = loops_on(1, 2)

    def reply(body: dict[str, Any], count: int) -> Reply:
        return refusal(400, "sesame?") if body["messages"][0]["content"].endswith("7") else plain(body, count)

    with bad_server(reply) as server:
        out = prompts.with_name("out")
        words = ["loops", "measure", server.url, "--model", "tiny", "--prompts", prompts, "--key-variable", "MY_KEY"]
        document = run(*words, "--out", out)
        text = run(*words, "--out", out, as_text=True)
        everything = (out / "answers.jsonl").read_text() + (out / "measurement.json").read_text() + text
    assert {key: document["loops"][0][key] for key in ("count", "total", "failed")} == {
        "count": 2,
        "total": 9,
        "failed": 1,
    }
    (failed,) = document["failed"]
    assert failed["id"] == "7" and failed["error"].startswith("HTTP 400")
    assert "1 requests brought no answer" in text and "7 at 0: HTTP 400" in text
    assert server.headers[0]["Authorization"] == "Bearer sesame" and "sesame" not in everything
    assert len(server.bodies) == 11, "the second time only the failed one is asked again"
    assert json.loads((out / "measurement.json").read_text())["loops"] == document["loops"]


def test_the_text_tells_every_number(run: Run, prompts: Path) -> None:
    with bad_server(loops_on(1, 2, 3)) as server:
        text = run("loops", "measure", server.url, "--model", "tiny", "--prompts", prompts, as_text=True)
    for part in (
        "10 of", "at most 512 tokens each", "3/10", "30.0%", "10.8% to 60.3%", "even at 0", "loops begin at token",
        "cut for loop 3", "antidoom", "kappa", "⟲",
    ):  # fmt: skip
        assert part in text, part


def test_a_killed_measurement_of_a_server_goes_on(run: Run, prompts: Path, tmp_path: Path) -> None:
    """kill -9 in the middle: what was answered is not asked again."""
    plain, out = loops_on(1, 2, 3), tmp_path / "answers.jsonl"

    def slow(body: dict[str, Any], count: int) -> Reply:
        time.sleep(0.05)
        return plain(body, count)

    with bad_server(slow) as server:
        words = ["loops", "measure", server.url, "--model", "tiny", "--prompts", str(prompts), "--out", str(out)]
        words += ["--concurrency", "1", "--samples", "4", "--temperature", "1"]
        script = "import sys; from minnow.cli import main; sys.exit(main(sys.argv[1:]))"
        process = subprocess.Popen([sys.executable, "-c", script, *words], stderr=subprocess.PIPE)
        until = time.monotonic() + 600
        while (
            not (out.exists() and out.read_bytes().count(b"\n") >= 5)
            and process.poll() is None
            and time.monotonic() < until
        ):
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        assert process.returncode == -signal.SIGKILL, process.stderr.read().decode()[-2000:]
        process.stderr.close()
        time.sleep(0.2)  # what it had sent arrives
        kept, answered, made = out.read_bytes(), len(read_answers(out)), len(server.bodies)
        assert 5 <= answered < 40
        document = run(*words)
        assert out.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
        assert document["loops"][0]["total"] == 40 and len(server.bodies) == made + 40 - answered
        assert "holds answers with seed 0, not 1" in run(*words, "--seed", "1", code=2)


def test_built_in_prompts_on_a_checkpoint(run: Run, tiny_model: Backbone, words: Tokenizer, tmp_path: Path) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    command = ["loops", "measure", tmp_path / "model", "--prompts", "enumeration", "open-ended", "--n", "3"]
    command += ["--max-new-tokens", "16", "--out", tmp_path / "out"]
    first = run(*command)
    assert first["prompts"] == "enumeration, open-ended" and first["n"] == 6
    assert {name: [rate["total"] for rate in rates] for name, rates in first["sets"].items()} == {
        "enumeration": [3],
        "open-ended": [3],
    }
    assert first["loops"][0]["causes"].keys() <= {"budget", "template", "loop"}
    answers = (tmp_path / "out/answers.jsonl").read_bytes()
    assert run(*command) == first and (tmp_path / "out/answers.jsonl").read_bytes() == answers
    # What measure kept, detect reads.
    assert main(["loops", "detect", str(tmp_path / "out/answers.jsonl")]) == 0
    tiny_model.embedding.data += 0.01
    save_checkpoint(tiny_model, words, tmp_path / "model")
    assert "holds answers with weights" in run(*command, code=2), "a model trained anew is another one"


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["http://localhost:1/v1"], "say which of its models to measure with --model NAME"),
        (
            ["http://localhost:1/v1", "--model", "x"],
            "name a JSONL file of prompts with --prompts, or one of enumeration",
        ),
        (["{tmp}/none", "--model", "x"], "leave --model out"),
        (["http://localhost:1/v1", "--model", "x", "--prompts", "enumerations"], "did you mean enumeration?"),
        (["http://localhost:1/v1", "--model", "x", "--prompts", "reasoning", "--samples", "0"], "--samples is 0"),
        (
            ["http://localhost:1/v1", "--model", "x", "--prompts", "{tmp}/double.jsonl"],
            "has the id '1' of an earlier line",
        ),
        (["http://", "--model", "x", "--prompts", "reasoning"], "is no address of a server"),
    ],
)
def test_bad_input_is_one_sentence(run: Run, tmp_path: Path, words: list[str], part: str) -> None:
    (tmp_path / "double.jsonl").write_text('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}\n')
    assert part in run("loops", "measure", *(word.format(tmp=tmp_path) for word in words), code=2)


def test_a_prompt_over_the_context_is_refused_before_anything_is_answered(
    run: Run, tiny_model: Backbone, words: Tokenizer, tmp_path: Path
) -> None:
    save_checkpoint(tiny_model, words, tmp_path / "model")
    rows = [{"prompt": "short"}, {"prompt": "word " * 3000}]
    (tmp_path / "long.jsonl").write_text("\n".join(map(json.dumps, rows)))
    command = ["loops", "measure", tmp_path / "model", "--prompts", tmp_path / "long.jsonl", "--out", tmp_path / "o"]
    assert "prompt line-2 of" in run(*command, code=2) and not (tmp_path / "o").exists()


def test_a_server_that_answers_nothing_is_one_sentence(run: Run, prompts: Path) -> None:
    with bad_server(lambda *_: refusal(400, "too long")) as server:
        sentence = run("loops", "measure", server.url, "--model", "tiny", "--prompts", prompts, code=2)
    assert "none of 10 prompts was answered; the first failed with: HTTP 400" in sentence


@pytest.fixture
def measured(run: Run, prompts: Path, tmp_path: Path) -> Callable[..., Path]:
    """``measured(name, looping numbers, more flags)``: the file of a measurement."""

    def make(name: str, looping: tuple[int, ...], *more: str) -> Path:
        with bad_server(loops_on(*looping)) as server:
            run("loops", "measure", server.url, "--model", name, "--prompts", prompts, "--out", tmp_path / name, *more)
        return tmp_path / name

    return make


def test_two_measurements_are_compared_prompt_by_prompt(run: Run, measured: Callable[..., Path]) -> None:
    first, second = measured("first", (0, 1, 2, 3, 4, 5, 6)), measured("second", (6, 7), "--n", "9")
    document = run("loops", "compare", first, second / "answers.jsonl")
    table = Paired(both=1, first=6, second=1, neither=1)
    assert {key: document["all"][key] for key in table.as_dict()} == table.as_dict()
    assert document["all"]["p_value"] == 0.125 and document["all"]["difference"] == round(-5 / 9, 6)
    assert document["all"]["first"] == Rate(7, 9).as_dict() and document["all"]["second"] == Rate(2, 9).as_dict()
    assert (document["only_in_first"], document["only_in_second"]) == (1, 0)
    assert [(each["temperature"], each["pairs"]) for each in document["sets"]] == [(0.0, 9)]
    text = run("loops", "compare", first, second, as_text=True)
    assert "Left out: 1 answers only A has." in text and "-55.6" in text and "0.12" in text
    back = run("loops", "compare", second, first)
    assert back["all"]["difference"] == -document["all"]["difference"]
    assert back["all"]["low"] == -document["all"]["high"]


def test_measurements_without_prompts_in_common_are_refused(
    run: Run, measured: Callable[..., Path], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    cold, warm = measured("cold", (1,)), measured("warm", (1,), "--temperature", "1")
    assert "no prompt, temperature and sample in common" in run("loops", "compare", cold, warm, code=2)
    assert "cannot be read" in run("loops", "compare", cold, tmp_path / "none.jsonl", code=2)
    (tmp_path / "empty.jsonl").touch()
    assert "empty.jsonl holds no answers yet" in run("loops", "compare", cold, tmp_path / "empty.jsonl", code=2)
    short = measured("short", (1,), "--max-new-tokens", "99")
    assert main(["loops", "compare", str(cold), str(short)]) == 0
    assert "max_tokens is 512 in" in capsys.readouterr().err
