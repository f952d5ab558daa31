"""A measurement that was killed goes on with the same answers; its file is whole lines or refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.evaluate.survey import AnswerFile, Question, Settings, judged_of, questions, read_answers, survey
from minnow.loops import RULES, find_text_loop
from minnow.model.backbone import Backbone
from minnow.model.checkpoint import load_checkpoint, save_checkpoint
from minnow.rollout import Sampling, TorchEngine
from minnow.rollout.records import per_prompt
from minnow.rollout.text_engine import ChatPrompt, LocalTextEngine, TextAnswer
from minnow.tasks import Example, PocketWorld, judge
from minnow.tasks.builtin import built_in

SETTINGS = Settings("tiny", "torch", None, 24, 5, False, False)
ROUND = "The list begins:" + " Velm and Osk," * 60


def asked(count: int, name: str = "a") -> list[Example]:
    return [
        Example(f"p{i}", f"task {i % 2}", "held_out", [{"role": "user", "content": f"{name} {i}"}], [], None)
        for i in range(count)
    ]


@dataclass
class Said:
    """Says of every prompt what it was told to, in any order, one request each as a server does."""

    answers_to: dict[str, tuple[str, str]]
    batch: int | None = None
    seen: list[tuple[str, Sampling]] = field(default_factory=list)

    def answers(
        self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
    ) -> Iterator[tuple[int, TextAnswer]]:
        for place, one in reversed(list(enumerate(per_prompt(sampling, len(prompts))))):
            self.seen.append((prompts[place].id, one))
            text, reason = self.answers_to.get(prompts[place].id, ("Yes.", "stop"))
            yield (
                place,
                TextAnswer(prompts[place].id, text, reason, one, 9, error="down" if reason == "failed" else None),
            )


@pytest.fixture
def local(tiny_model: Backbone, words: Tokenizer) -> LocalTextEngine:
    engine = LocalTextEngine(TorchEngine(tiny_model, words), words, 4)
    engine.batch = 8
    return engine


def test_what_is_asked() -> None:
    found = questions({"a": asked(2), "b": asked(1, "b")}, [0.0, 0.7, 0.0], 3)
    assert [(q.set, q.example.id, q.temperature, q.sample) for q in found] == [
        ("a", "p0", 0.0, 0),
        ("a", "p1", 0.0, 0),
        *[("a", p, 0.7, sample) for sample in range(3) for p in ("p0", "p1")],
        ("b", "p0", 0.0, 0),
        *[("b", "p0", 0.7, sample) for sample in range(3)],
    ]
    assert len({question.key for question in found}) == len(found)


def test_rows_hold_answers_verdicts_and_settings(tmp_path: Path) -> None:
    path = tmp_path / "new/answers.jsonl"
    engine = Said({"p0": (ROUND, "length"), "p1": ("half \ud83d", "length"), "p2": ("", "failed")})
    wanted = questions({"a": asked(4)}, [0.0], 1)
    rows = survey(engine, None, wanted, AnswerFile(path, SETTINGS))
    assert [row["id"] for row in rows] == ["p0", "p1", "p2", "p3"], "in the order asked, whatever came first"
    kept = {row["id"]: row for row in read_answers(path)}
    assert kept == {row["id"]: row for row in rows}
    first = judged_of(kept["p0"])
    assert first.loop == find_text_loop(ROUND) and first.cause == "loop" and first.tokens == 9
    assert first.rules == ("minnow-watch", *(name for name, rule in RULES.items() if rule(ROUND) is not None))
    assert kept["p1"]["text"] == "half \ud83d" and kept["p1"]["cause"] == "budget"
    assert (kept["p2"]["finish_reason"], kept["p2"]["error"]) == ("failed", "down")
    assert (kept["p3"]["model"], kept["p3"]["seed"], kept["p3"]["max_tokens"]) == ("tiny", 5, 24)
    assert all(one.max_new_tokens == 24 and not one.stop_on_loop for _, one in engine.seen)


def test_only_what_is_missing_or_failed_is_asked_again(tmp_path: Path) -> None:
    path, wanted = tmp_path / "answers.jsonl", questions({"a": asked(6)}, [0.0, 1.0], 1)
    survey(Said({"p2": ("", "failed")}), None, wanted[:4], AnswerFile(path, SETTINGS))
    engine, advanced = Said({}), []
    rows = survey(engine, None, wanted, AnswerFile(path, SETTINGS), advanced.append)
    assert sorted(name for name, _ in engine.seen) == sorted(["p2", "p4", "p5", *(f"p{i}" for i in range(6))])
    assert len(rows) == 12 and sum(advanced) == 9 and all(row["finish_reason"] == "stop" for row in rows)
    assert len(read_answers(path)) == 13, "the failed one stays on record"
    assert [row["id"] for row in survey(Said({}), None, wanted, AnswerFile(path, SETTINGS))] == [r["id"] for r in rows]


def test_samples_and_batches_have_noise_of_their_own(local: LocalTextEngine, words: Tokenizer) -> None:
    same = [replace(each, messages=[{"role": "user", "content": "same"}]) for each in asked(16)]
    rows = survey(local, words, questions({"a": same}, [1.0], 2), AnswerFile(None, SETTINGS))
    assert len({row["text"] for row in rows}) == 32
    again = survey(local, words, questions({"a": same}, [1.0], 2), AnswerFile(None, SETTINGS))
    other = survey(local, words, questions({"a": same}, [1.0], 2), AnswerFile(None, replace(SETTINGS, seed=6)))
    assert again == rows and not {row["text"] for row in other} & {row["text"] for row in rows}
    assert [row["tokens"] for row in rows] == [judged_of(row).tokens for row in rows]


def test_a_conversation_is_one_answer(tmp_path: Path) -> None:
    examples = built_in("file-requests", {}).examples("held_out", 6)
    worked = {each.id: [t["content"] for t in each.reference if t["role"] == "assistant"] for each in examples}

    @dataclass
    class Worked(Said):
        """Says the next turn of the worked continuation."""

        def answers(
            self, prompts: Sequence[ChatPrompt], sampling: Sampling | Sequence[Sampling]
        ) -> Iterator[tuple[int, TextAnswer]]:
            for place, one in enumerate(per_prompt(sampling, len(prompts))):
                turn = sum(message["role"] == "assistant" for message in prompts[place].messages)
                yield place, TextAnswer(prompts[place].id, worked[prompts[place].id][turn], "stop", one, 2)

    path = tmp_path / "answers.jsonl"
    rows = survey(Worked({}), None, questions({"a": examples}, [0.0], 1), AnswerFile(path, SETTINGS))
    assert all(judge(each, row["text"]).correct for each, row in zip(examples, rows, strict=True))
    assert [row["tokens"] for row in rows] == [2 * len(worked[each.id]) for each in examples]
    assert {row["finish_reason"] for row in rows} == {"stop"}
    assert {row["id"]: row for row in read_answers(path)} == {row["id"]: row for row in rows}


KILLED = """
import os, signal, sys
from pathlib import Path
sys.path.insert(0, str(Path(sys.argv[1]).parent))
import test_survey
test_survey.run(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
"""


def run(checkpoint: Path, out: Path, batches: int | None = None) -> None:
    """The survey below, ended by SIGKILL after some batches."""
    model, words = load_checkpoint(checkpoint)
    engine = LocalTextEngine(TorchEngine(model, words), words, 4)
    engine.batch = 8
    done = []

    def count(_: int) -> None:
        done.append(1)
        if len(done) == batches:
            os.kill(os.getpid(), signal.SIGKILL)

    survey(engine, words, questions({"a": asked(20)}, [0.0, 1.0], 2), AnswerFile(out, SETTINGS), count)


def test_a_killed_run_goes_on_to_the_same_file(tiny_model: Backbone, words: Tokenizer, tmp_path: Path) -> None:
    """kill -9 in the middle of a sample, then to the end: the bytes are those of a run that nobody disturbed."""
    save_checkpoint(tiny_model, words, tmp_path / "model")
    run(tmp_path / "model", tmp_path / "whole.jsonl")
    script = [sys.executable, "-c", KILLED, __file__, str(tmp_path / "model"), str(tmp_path / "killed.jsonl")]
    ended = subprocess.run([*script, "5"], capture_output=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()[-2000:]
    assert len(read_answers(tmp_path / "killed.jsonl")) == 36
    run(tmp_path / "model", tmp_path / "killed.jsonl")
    assert (tmp_path / "killed.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory, words: Tokenizer) -> Path:
    path = tmp_path_factory.mktemp("survey") / "whole.jsonl"
    texts = {f"p{i}": (f"é {i} " * 5, "length") for i in range(7)}
    survey(Said(texts, batch=3), None, questions({"a": asked(7)}, [0.5], 1), AnswerFile(path, SETTINGS))
    return path


@settings(deadline=None, derandomize=True, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
def test_a_file_cut_anywhere_is_completed(whole_file: Path, tmp_path: Path, share: float) -> None:
    """Half a line is taken away, half a batch asked again; what was there stays as it is."""
    data, cut = whole_file.read_bytes(), tmp_path / "cut.jsonl"
    left = data[: int(share * len(data))]
    cut.write_bytes(left)
    texts = {f"p{i}": (f"é {i} " * 5, "length") for i in range(7)}
    rows = survey(Said(texts, batch=3), None, questions({"a": asked(7)}, [0.5], 1), AnswerFile(cut, SETTINGS))
    assert {row["id"]: row for row in read_answers(cut)} == {row["id"]: row for row in read_answers(whole_file)}
    assert len(rows) == 7 and cut.read_bytes().startswith(left[: left.rfind(b"\n") + 1])


@pytest.mark.parametrize("other", [{"seed": 6}, {"model": "big"}, {"weights": "ab"}, {"max_tokens": 9}, {"raw": True}])
def test_a_file_of_other_settings_is_refused(whole_file: Path, other: dict[str, Any]) -> None:
    before, (name,) = whole_file.read_bytes(), other
    with pytest.raises(UserError, match=f"holds answers with {name} .*, not .*; repeat the command .* with --out"):
        AnswerFile(whole_file, replace(SETTINGS, **other))
    assert whole_file.read_bytes() == before


@pytest.mark.parametrize(
    "content",
    [b"my notes, not to be lost", b"notes\n", b'{"text": "a"}\n', b"[1]\n", b'{"id": "p0"}\n', b"\xff\xfe\n", b"{}\n{"],
)
def test_a_file_of_something_else_is_refused_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_bytes(content)
    with pytest.raises(UserError, match="name another file"):
        AnswerFile(path, SETTINGS)
    assert path.read_bytes() == content


def test_rows_with_values_of_other_types_are_refused(whole_file: Path, tmp_path: Path) -> None:
    row = json.loads(whole_file.read_text().splitlines()[0])
    for broken in ({"loop": {"kind": "x"}}, {"temperature": "hot"}, {"tokens": "9"}, {"rules": None}):
        (tmp_path / "odd.jsonl").write_text(json.dumps(row | broken) + "\n")
        with pytest.raises(UserError, match="line 1 of .* is not an answer"):
            read_answers(tmp_path / "odd.jsonl")


def test_a_full_disk_is_a_sentence(tmp_path: Path) -> None:
    file = AnswerFile(tmp_path / "answers.jsonl", SETTINGS)
    file.path = Path("/dev/full")
    with pytest.raises(UserError, match="could not write .*; free some space or choose another folder"):
        survey(Said({}), None, questions({"a": asked(1)}, [0.0], 1), file)


def test_questions_of_one_set_differ_by_what_is_asked(pocket: PocketWorld) -> None:
    one, other = asked(1)[0], asked(1, "b")[0]
    assert Question("a", one, 0.0, 0).key != Question("a", other, 0.0, 0).key
    assert Question("a", one, 0.0, 0).key != Question("a", replace(one, tools=[{"name": "x"}]), 0.0, 0).key
