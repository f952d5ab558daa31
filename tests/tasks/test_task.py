"""Tasks from files and from a seed: splits that do not leak, faults with their lines, verifiers that may fail."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.tasks import TASKS, Draft, Example, PocketWorld, Score, Split, Task, drafts_of, drawn_task, file_task, judge
from minnow.tasks.task import DRAWN_EXAMPLES, LONGEST_ANSWER


def right(answer: Any, text: str) -> Score:
    return Score.right() if text == answer else Score.wrong("other")


READ = drafts_of(lambda row: [Draft.plain(row.values["q"], row.values["a"], row.values["a"], id=row.values.get("id"))])


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def test_a_task_of_two_files(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", *({"q": f"t{i}", "a": "x"} for i in range(3)))
    test = write(tmp_path / "test.jsonl", {"q": "h0", "a": "y", "id": "own"}, {"q": "h1", "a": "y", "id": "own"})
    task = file_task("two-files", READ, right, {"train": train, "held_out": test}, 17)
    examples = task.examples("held_out", None)
    assert [each.id for each in examples] == ["own", "two-files-held_out-2"], "ids are unique"
    assert examples[0].messages == [{"role": "user", "content": "h0"}] and examples[0].split == "held_out"
    assert len(task.examples("train", 2)) == 2 and task.max_new_tokens == 17
    assert judge(examples[0], " y <|im_end|>").correct and not judge(examples[0], "x").correct
    assert judge(examples[0], "<think>x or y?</think>\ny").correct, "thoughts are no part of the answer"


def test_one_file_is_split_by_the_prompts_checksum(tmp_path: Path) -> None:
    rows = [{"q": f"question {i}", "a": "x"} for i in range(200)]
    task = file_task("one-file", READ, right, write(tmp_path / "all.jsonl", *rows))
    held, train = task.examples("held_out", None), task.examples("train", None)
    assert len(held) + len(train) == 200 and 20 < len(held) < 60
    again = file_task("one-file", READ, right, write(tmp_path / "less.jsonl", *rows[::-1]))
    assert {e.messages[0]["content"] for e in again.examples("held_out", None)} == {
        e.messages[0]["content"] for e in held
    }


def test_a_leak_is_refused_by_name(tmp_path: Path) -> None:
    train = write(tmp_path / "train.jsonl", {"q": "Who?", "a": "x"}, {"q": "Where?", "a": "x", "id": "t2"})
    test = write(tmp_path / "test.jsonl", {"q": "What?", "a": "x"}, {"q": " who?", "a": "y"}, {"q": "WHERE?", "a": "x"})
    task = file_task("leaky", READ, right, {"train": train, "held_out": test})
    with pytest.raises(UserError, match="'leaky' leak: 1 held-out prompt is also .*leaky-held_out-3, there t2"):
        task.examples("held_out", None)


def test_bad_rows_are_named_by_line(tmp_path: Path) -> None:
    file = write(tmp_path / "rows.jsonl", {"q": "1", "a": "x"}, {"q": "2"}, {"q": "3", "a": "x"})
    with pytest.raises(UserError, match="line 2 of .* has no 'a'"):
        file_task("rows", READ, right, {"held_out": file}).examples("held_out", None)
    faults = Faults(skip=True)
    assert len(file_task("rows", READ, right, {"held_out": file}, faults=faults).examples("held_out", None)) == 2
    assert len(faults.found) == 1
    with pytest.raises(UserError, match="has no train examples"):
        file_task("rows", READ, right, {"held_out": file}, faults=faults).examples("train", None)


def test_a_drawn_task_has_distinct_prompts_in_disjoint_splits() -> None:
    def draw(rng: Random, _: Split) -> Draft:
        number = rng.randrange(10**6)
        return Draft.plain(f"Say {number}.", str(number), str(number))

    task = drawn_task("say", draw, right)
    prompts = {split: [e.messages[0]["content"] for e in task.examples(split, 300)] for split in ("train", "held_out")}
    assert len(set(prompts["train"])) == len(set(prompts["held_out"])) == 300
    assert not set(prompts["train"]) & set(prompts["held_out"])
    assert len(task.examples("held_out", None)) == DRAWN_EXAMPLES
    shorter = [e.messages[0]["content"] for e in task.examples("held_out", 10)]
    assert shorter == prompts["held_out"][:10]


def raises(answer: Any, text: str) -> Score:
    raise ZeroDivisionError("no luck")


def leaves(answer: Any, text: str) -> Score:
    sys.exit(3)


@pytest.mark.parametrize(
    "verify",
    [raises, leaves, lambda a, t: None, lambda a, t: Score(2.0, True, ""), lambda a, t: Score(float("nan"), True, "")],
)
def test_a_verifier_that_fails_is_a_fault_not_an_end(verify: Any) -> None:
    Task("faulty", lambda split, n: [], verify)
    score = judge(Example("1", "faulty", "held_out", [], [], None), "text")
    assert not score.correct and score.value == 0 and score.fault


def test_an_endless_answer_is_wrong_unread() -> None:
    Task("endless", lambda split, n: [], raises)
    score = judge(Example("1", "endless", "held_out", [], [], None), "x" * (LONGEST_ANSWER + 1))
    assert score.fault is None and "longer than" in score.reason


def test_names() -> None:
    with pytest.raises(UserError, match="cannot name a task"):
        Task("My task", lambda split, n: [], right)
    with pytest.raises(UserError, match="built-in"):
        Task("arithmetic", lambda split, n: [], right)
    with pytest.raises(UserError, match="no verifier"):
        judge(Example("1", "never-made", "held_out", [], [], None), "x")


@pytest.mark.parametrize("name", TASKS)
def test_the_pocket_worlds_tasks_are_tasks_like_others(name: str, pocket: PocketWorld) -> None:
    task = pocket.task(name)
    examples = task.examples("held_out", 5)
    assert examples == pocket.examples(name, "held_out", 5)
    assert all(judge(each, each.reference[0]["content"]).correct for each in examples)
