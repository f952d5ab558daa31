"""Which prompts a recipe's stages draw: no two of measuring, choosing and training share one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from minnow.errors import UserError
from minnow.evaluate.prompts import read_prompts
from minnow.recipe.stages.prompts import LOOSE, given_prompts, read_given
from minnow.tasks import judge
from minnow.tasks.given import Given, is_open


def write(path: Path, *rows: object) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(map(json.dumps, rows)))
    return str(path)


def test_parts_share_no_prompt_and_training_goes_round_in_epochs(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", *({"prompt": f"prompt {i}"} for i in (*range(20), 3, 7)))
    drawn = given_prompts((file,), 200, 1)
    parts = [{each.id for each in part} for part in (drawn.train, drawn.gate, drawn.held_out)]
    assert [len(part) for part in parts] == [12, 4, 4] and len(set.union(*parts)) == 20
    assert given_prompts((file,), 200, 2).held_out != drawn.held_out
    asked = drawn.to_explore(steps=5, each_step=5, loop_share=0.5, first=0)
    seen = [each.id for step in range(5) for each in asked(step)]
    assert len(seen) == 25 and sorted(seen[:12]) == sorted(seen[12:24]) == sorted(parts[0]) and seen[:12] != seen[12:24]
    loops, scored = drawn.to_gate(2000, 3, 12)
    assert loops is scored and len(loops) == 3, "answers to the gate's prompts are decoded once"


def test_sets_files_and_task_files_together(tmp_path: Path) -> None:
    """Each with its own verifier; equal prompts once; ids that files share are told apart."""
    first = write(tmp_path / "a/p.jsonl", {"prompt": "one", "answer": 1}, {"prompt": "two", "task": "My Task"})
    second = write(tmp_path / "b/p.jsonl", {"prompt": "one", "answer": 1}, {"prompt": "three", "answer": "x"})
    rows = write(tmp_path / "rows.jsonl", *({"prompt": f"task {i}", "answer": "yes"} for i in range(10)))
    (tmp_path / "mine.yaml").write_text(f"name: mine\nverifier: exact\ndata: {Path(rows).name}\n")
    found = read_given(["enumeration", first, second, str(tmp_path / "mine.yaml")], 5)
    assert [each.task for each in found[5:8]] == ["prompts", "my-task", "prompts"] and len(found) == 5 + 3 + 10
    assert len({each.id for each in found}) == len(found)
    assert [is_open(each) for each in found] == [True] * 5 + [False, True, False] + [False] * 10
    assert judge(found[5], "It is 1.").correct and judge(found[7], "x").correct and judge(found[8], "yes").correct
    with pytest.raises(UserError, match="did you mean enumeration"):
        read_given(["enumerations"], 5)


def test_what_a_task_holds_out_is_never_trained_on(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", *({"prompt": f"train {i}", "answer": "yes"} for i in range(20)))
    write(tmp_path / "test.jsonl", *({"prompt": f"test {i}", "answer": "yes"} for i in range(7)))
    (tmp_path / "mine.yaml").write_text("name: mine\nverifier: exact\ntrain: train.jsonl\nheld_out: test.jsonl\n")
    loose = write(tmp_path / "p.jsonl", *({"prompt": f"prompt {i}"} for i in range(10)))
    drawn = given_prompts((str(tmp_path / "mine.yaml"), loose, "function-calls"), 10, 1)
    splits = [{(each.task, each.split) for each in part} for part in (drawn.train, drawn.gate, drawn.held_out)]
    tasks = {"mine", "function-calls"}
    assert splits[0] == splits[1] == {("prompts", LOOSE)} | {(task, "train") for task in tasks}
    assert splits[2] == {("prompts", LOOSE)} | {(task, "held_out") for task in tasks}
    assert [len(part) for part in (drawn.train, drawn.gate, drawn.held_out)] == [30, 8, 19]
    worked = drawn.to_replay(3)
    assert [each.task for each in worked].count("mine") == 3 and len(worked) == 6, "prompts have no worked examples"


def test_rows_say_what_compares_their_answer(tmp_path: Path) -> None:
    file = write(
        tmp_path / "p.jsonl", {"prompt": "a", "answer": 3}, {"prompt": "b", "answer": "^x", "verifier": "regex"},
        {"prompt": "c"}, {"prompt": "d", "answer": {"a": 1}}, {"prompt": "e", "answer": "x"},
    )  # fmt: skip
    answers = [each.answer for each in read_prompts(Path(file))]
    assert answers == [
        Given("number", 3), Given("regex", "^x"), Given("rules"), Given("json", {"a": 1}), Given("exact", "x"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"prompt": "a", "answer": 1, "verifier": "numbr"}, "line 1 of .* names the verifier 'numbr'; choose from"),
        ({"prompt": "a", "verifier": "number"}, "has no 'answer' to compare with"),
        ({"prompt": "a", "answer": "(", "verifier": "regex"}, "the verifier 'regex' cannot take the answer"),
        ({"prompt": "a", "answer": "none", "verifier": "number"}, "holds no number"),
    ],
)
def test_answers_that_nothing_can_be_compared_with_are_named(tmp_path: Path, row: object, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        read_prompts(Path(write(tmp_path / "p.jsonl", row)))
