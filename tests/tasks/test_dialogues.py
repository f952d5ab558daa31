"""Conversations with mock APIs: BFCL's multi-turn categories and the drawn requests about files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minnow.data.calls import Call, render_calls
from minnow.data.chat import joined, parted
from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.recipe.stages.prompts import read_given
from minnow.tasks import Example, Task, judge
from minnow.tasks.builtin import built_in
from minnow.tasks.builtin.dialogues import MOST_STEPS
from minnow.tasks.task import following

DATA = Path(__file__).resolve().parents[3] / "shared/data/bfcl"


def document(name: str, *keys: str) -> dict[str, Any]:
    properties = {key: {"type": "string"} for key in keys}
    return {
        "name": name,
        "description": name,
        "parameters": {"type": "dict", "properties": properties, "required": [*keys]},
    }


DOCUMENTS = {
    "gorilla_file_system": [document("sort", "file_name"), document("touch", "file_name"), document("ls"),
                            document("mv", "source", "destination"), document("cp", "source", "destination")],
    "math_api": [document("mean", "numbers")],
    "message_api": [document("list_users")],
    "posting_api": [document("get_tweet", "tweet_id")],
    "ticket_api": [document("logout")],
}  # fmt: skip
ROW = {
    "id": "m_0",
    "question": [[{"role": "user", "content": "Sort a, and make b."}], [{"role": "user", "content": "Thanks."}],
                 [{"role": "user", "content": "Move b to c."}]],
    "initial_config": {"GorillaFileSystem": {"root": {"w": {"type": "directory", "contents": {
        "a": {"type": "file", "content": "2\n1"}}}}}},
    "involved_classes": ["GorillaFileSystem", "MathAPI"],
    "excluded_function": ["cp"],
}  # fmt: skip
ANSWER = {"id": "m_0", "ground_truth": [["sort('a')", "touch(file_name='b')"], [], ["mv('b', destination='c')"]]}
SORT, TOUCH = Call("sort", {"file_name": "a"}), Call("touch", {"file_name": "b"})
MOVE = Call("mv", {"source": "b", "destination": "c"})


def write(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def opened(folder: Path, row: dict[str, Any] = ROW, answer: dict[str, Any] = ANSWER, published: bool = False) -> Task:
    for name, rows in DOCUMENTS.items():
        write(folder / (f"multi_turn_func_doc/{name}.json" if published else f"func_doc_{name}.jsonl"), rows)
    write(folder / ("possible_answer/part.json" if published else "part_answers.json"), [answer])
    return built_in("bfcl-multi-turn", {"held_out": write(folder / "part.json", [row])})


def said(*turns: Call | list[Call] | str) -> str:
    return joined(
        [turn if isinstance(turn, str) else render_calls(turn if isinstance(turn, list) else [turn]) for turn in turns]
    )


def worked(example: Example) -> list[str]:
    return [each["content"] for each in example.reference if each["role"] == "assistant"]


@pytest.mark.parametrize("published", [False, True])
def test_a_row(tmp_path: Path, published: bool) -> None:
    (example,) = opened(tmp_path, published=published).examples("held_out", None)
    assert example.messages == ROW["question"][0]
    assert [each["name"] for each in example.tools or ()] == ["sort", "touch", "ls", "mv", "mean"], (
        "without excluded ones"
    )
    assert [each["role"] for each in example.reference] == [
        "assistant", "tool", "tool", "assistant", "user", "assistant", "user", "assistant", "tool", "assistant"
    ]  # fmt: skip
    assert example.reference[1]["content"] == '{"sorted_content": "1\\n2"}'
    assert judge(example, joined(worked(example))).correct


RIGHT = {
    "a call at a time, in another order": (TOUCH, SORT, "Done.", "Welcome.", MOVE, "Done."),
    "calls that change nothing between": ([Call("ls"), SORT, TOUCH], "Done.", Call("ls"), "No.", MOVE, ""),
    "an error on the way": (Call("sort", {"file_name": "x"}), SORT, TOUCH, "", "", [MOVE], "ok"),
    "another form of call": (
        '<tool_call>{"name": "sort", "arguments": {"file_name": "a"}}</tool_call>', TOUCH, "", "", MOVE, "",
    ),
}  # fmt: skip
WRONG = {
    "no call": (("Done.", "", ""), "turn 1 makes no call", 0),
    "one call too few": ((SORT, "", "", MOVE, ""), "turn 1 leaves GorillaFileSystem", 0),
    "one that was not to be": (
        ([SORT, TOUCH, Call("touch", {"file_name": "d"})], "", "", MOVE, ""), "turn 1 leaves GorillaFileSystem", 0,
    ),
    "a result never seen": ((TOUCH, "", "", MOVE, ""), 'turn 1 never saw {"sorted_content"', 0),
    "wrong at the end": (([SORT, TOUCH], "", "", Call("mv", {"source": "b", "destination": "d"}), ""), "turn 3 leaves", 2 / 3),
    "not to the end": (([SORT, TOUCH], "", "", MOVE), "turn 3 does not end", 2 / 3),
    "done too early": (([SORT, TOUCH, MOVE], "", "", ""), "turn 1 leaves", 0),
    "a call that cannot be read": (("<|tool_call_start|>[sort(", "", ""), "turn 1 makes no call", 0),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_is_right(tmp_path: Path, name: str) -> None:
    (example,) = opened(tmp_path).examples("held_out", None)
    found = judge(example, said(*RIGHT[name]))
    assert found.correct and found.value == 1 and found.metrics == {"turns": (3, 3)}, found


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong(tmp_path: Path, name: str) -> None:
    (example,) = opened(tmp_path).examples("held_out", None)
    turns, reason, value = WRONG[name]
    found = judge(example, said(*turns))
    assert not found.correct and found.fault is None
    assert found.reason.startswith(reason) and found.value == pytest.approx(value), found


def test_what_a_model_reads_next(tmp_path: Path) -> None:
    (example,) = opened(tmp_path).examples("held_out", None)
    both = render_calls([SORT, Call("none")])
    assert following(example, [both]) == [
        {"role": "tool", "content": '{"sorted_content": "1\\n2"}'},
        {"role": "tool", "content": '{"error": "there is no function none"}'},
    ]
    assert following(example, [both, "Done."]) == ROW["question"][1]
    assert following(example, ["", ""]) == ROW["question"][2] and following(example, ["", "", ""]) is None
    assert following(example, [both] * (MOST_STEPS - 1)) and following(example, [both] * MOST_STEPS) is None
    assert not judge(example, joined([both] * MOST_STEPS)).correct


@pytest.mark.parametrize(
    "row, answer, reason",
    [
        ({"involved_classes": ["TravelAPI"]}, {}, "it needs TravelAPI"),
        ({"missed_function": {"0": ["sort"]}}, {}, "another category"),
        ({}, {"ground_truth": [["sort('a')"]]}, "3 turns and the answers of 1"),
        ({}, {"ground_truth": [["__import__('os')"], [], []]}, "__import__"),
        ({}, {"ground_truth": [["'a'.upper()"], [], []]}, "is no call"),
        ({}, {"ground_truth": [["sort(file_name=open)"], [], []]}, "malformed"),
    ],
)
def test_rows_that_cannot_be_used(tmp_path: Path, row: dict[str, Any], answer: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=r"entry 1 of .*part\.json") as caught:
        opened(tmp_path, ROW | row, ANSWER | answer).examples("held_out", None)
    assert reason in str(caught.value)


def test_function_documents_are_asked_for(tmp_path: Path) -> None:
    task = opened(tmp_path)
    (tmp_path / "func_doc_math_api.jsonl").unlink()
    with pytest.raises(UserError, match=r"needs the functions of MathAPI, in multi_turn_func_doc/math_api\.json"):
        task.examples("held_out", None)


def test_drawn_requests_are_answered_by_their_worked_continuation() -> None:
    for example in built_in("file-requests", {}, seed=2).examples("train", 60):
        texts, rest = [], list(example.reference)
        more: list[dict[str, Any]] | None = []
        while rest:
            texts.append(rest.pop(0)["content"])
            more = following(example, texts)
            assert rest[: len(more or ())] == (more or [])
            del rest[: len(more or ())]
        assert more is None and '"error"' not in json.dumps(example.reference)
        assert judge(example, joined(texts)).correct and not judge(example, joined(texts[:-1])).correct


def test_the_published_data() -> None:
    if not DATA.is_dir():
        pytest.skip("the published data of BFCL is not beside the checkout")
    faults = Faults(skip=True)
    task = built_in("bfcl-multi-turn", {"held_out": DATA / "multi_turn_base.jsonl.xz"}, faults=faults)
    examples = task.examples("held_out", None)
    assert (len(examples), len(faults.found)) == (50, 150)
    assert all(judge(each, joined(worked(each))).correct for each in examples)
    assert not any(
        '"error"' in turn["content"] for each in examples for turn in each.reference if turn["role"] == "tool"
    )


def test_what_takes_one_answer_refuses_a_conversation() -> None:
    with pytest.raises(UserError, match="'file-requests' is a conversation of several turns"):
        read_given(["file-requests"], 5)
    assert read_given(["function-calls"], 5)


def test_turns_as_one_text() -> None:
    assert parted(joined(["a", "", "b<|im_end|>\nc"])) == ["a", "", "b\nc"]
