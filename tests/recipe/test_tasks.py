"""A user's task: one YAML file or one Python file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.recipe.tasks import load_task
from minnow.tasks import PocketWorld, judge

TICKETS = """\
name: tickets
prompt: |-
  Extract the ticket as JSON, such as {"room": 1}.
  {text}
verifier: json
schema:
  type: object
  properties: {room: {type: integer, minimum: 1}, urgent: {type: boolean}}
  required: [room]
held_out: tickets.jsonl
max_new_tokens: 40
"""
ROWS = [
    {"text": "Room 4, quickly!", "answer": {"room": 4, "urgent": True}, "id": 7},
    {"text": "Room 12.", "answer": {"room": 12, "urgent": False}},
]


def write(folder: Path, text: str, rows: list[Any] = ROWS, name: str = "task.yaml") -> str:
    (folder / "tickets.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_task_in_yaml(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, TICKETS))
    first, second = task.examples("held_out", None)
    assert (task.name, task.max_new_tokens, first.id) == ("tickets", 40, "7")
    assert first.messages[-1]["content"] == 'Extract the ticket as JSON, such as {"room": 1}.\nRoom 4, quickly!'
    assert judge(first, first.reference[0]["content"]).correct
    assert judge(first, '{"urgent": true, "room": 4.0}').correct, "the order of fields and 4.0 do not matter"
    half = judge(first, '{"room": 4, "urgent": false}')
    assert not half.correct and half.value == 0.5 and half.metrics["valid"] == 1
    assert judge(second, '{"room": 0, "urgent": false}').metrics["valid"] == 0
    assert judge(second, "Room 12").reason == "no JSON in the answer"


def test_messages_system_and_tools(tmp_path: Path) -> None:
    text = "name: chatty\nverifier: exact\nsystem: Be brief.\ndata: tickets.jsonl\n"
    rows = [{"messages": [{"role": "user", "content": f"Say {i}."}], "answer": [str(i), f"{i}."]} for i in range(20)]
    task = load_task(write(tmp_path, text, rows))
    example = [*task.examples("train", None), *task.examples("held_out", None)][0]
    assert [each["role"] for each in example.messages] == ["system", "user"]
    assert judge(example, example.answer[1]).correct and not judge(example, "None.").correct


@pytest.mark.parametrize(
    "verifier, answer, right, wrong",
    [
        ("exact", "Paris", " Paris\n", "paris"),
        ("contains", ["Paris", "1889"], "In paris, 1889.", "In Paris, 18890."),
        ("number", 1000, "That makes $1,000.00", "That makes 1,00"),
        ("number", "-3.50", "so x = −3.5 km.", "3.5"),
        ("question", ["the Eiffel Tower"], "Eiffel tower!", "the tower"),
        ("json", {"a": [1]}, '```\n{"a": [1]}\n```', '{"a": [2]}'),
    ],
)
def test_verifiers(tmp_path: Path, verifier: str, answer: Any, right: str, wrong: str) -> None:
    rows = [{"prompt": "?", "answer": answer}]
    text = f"name: any\nverifier: {verifier}\nheld_out: tickets.jsonl\n"
    (example,) = load_task(write(tmp_path, text, rows)).examples("held_out", None)
    assert judge(example, example.reference[0]["content"]).correct
    assert judge(example, right).correct and not judge(example, wrong).correct


PYTHON = """\
from minnow.tasks import Draft, Score, Task
from minnow.tasks.task import examples_of

def examples(split, n):
    numbers = range(0, 10) if split == "train" else range(LOW, 20)
    return examples_of("doubles", split, [Draft.plain(f"Double {i}.", str(2 * i), 2 * i) for i in numbers])[:n]

def verify(answer, text):
    return Score.of(text == str(answer), f"not {answer}")

task = Task("doubles", examples, verify, max_new_tokens=5)
"""


def test_a_task_in_python(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, PYTHON.replace("LOW", "10"), name="task.py"))
    assert [judge(e, e.reference[0]["content"]).correct for e in task.examples("held_out", 3)] == [True] * 3
    leaky = load_task(write(tmp_path, PYTHON.replace("LOW", "9"), name="task.py"))
    with pytest.raises(UserError, match="'doubles' leak: 1 held-out"):
        leaky.examples("held_out", 3)


@pytest.mark.parametrize(
    "text, said",
    [
        ("name: [", "YAML"),
        ("name: t", "verifier is missing"),
        (TICKETS.replace("verifier: json", "verifier: jsn"), "did you mean json"),
        (TICKETS.replace("verifier: json", "verifier: exact"), "a schema is for the verifier json"),
        (TICKETS.replace("minimum", "minimun"), "minimun is not understood"),
        (TICKETS.replace("held_out:", "heldout:"), "did you mean held_out"),
        (TICKETS.replace("held_out: tickets.jsonl\n", ""), "name one file as data"),
        (TICKETS.replace("40", "0"), "at least 1"),
        (TICKETS.replace("name: tickets", "name: extraction"), "built-in"),
    ],
)
def test_a_wrong_file_is_a_sentence(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_task(write(tmp_path, text))


def test_rows_and_names_that_are_wrong(tmp_path: Path, pocket: PocketWorld) -> None:
    bad = [*ROWS, {"text": "no answer"}, {"answer": {}}]
    with pytest.raises(UserError, match="line 3 of .* has no 'answer'"):
        load_task(write(tmp_path, TICKETS, bad)).examples("held_out", None)
    faults = Faults(skip=True)
    assert len(load_task(write(tmp_path, TICKETS, bad), faults).examples("held_out", None)) == 2
    assert len(faults.found) == 2
    assert load_task("extraction", world=pocket).name == "extraction"
    for source, said in (
        ("extractoin", "did you mean extraction"),
        ("extraction", "belongs to no run"),
        ("none.yaml", "no task file"),
        (write(tmp_path, "1 / 0", name="zero.py"), "ZeroDivisionError"),
        (write(tmp_path, "a = 1", name="nothing.py"), "makes no task"),
    ):
        with pytest.raises(UserError, match=said):
            load_task(source)
