"""Built-in tasks: on small samples in the published formats always, on the real data where it lies beside the checkout."""

from __future__ import annotations

import itertools
import json
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest

from minnow.data.calls import Call, parse_any_calls, render_calls, without_calls
from minnow.data.table import Faults
from minnow.errors import UserError
from minnow.tasks import Example, Task, judge
from minnow.tasks.builtin import BUILT_IN, built_in
from minnow.tasks.builtin.e2e import slots
from minnow.tasks.builtin.maths import chosen
from minnow.tasks.builtin.scitldr import facts

DATA = Path(__file__).resolve().parents[3] / "shared/data"
ROUGE = ("fairytaleqa", "scitldr")

PASSAGE = "The Osk flows through Vell. It is 120 km long."
QUESTIONS = [
    {"id": "q1", "question": "What flows through Vell?", "answers": [{"text": "The Osk"}, {"text": "Osk"}]},
    {"id": "q2", "question": "How deep is it?", "answers": [], "is_impossible": True},
]
SUMS = {"question": "2 + 1,000?", "answer": "It is 2+1000=<<2+1000=1002>>1,002.\n#### 1,002"}
ALGEBRA = {
    "question": "x + 1 = 3?", "options": ["A)1", "B)2", "C)3", "D)4", "E)5"], "rationale": "x = 2.", "correct": "B"
}  # fmt: skip
TALE = {
    "story": "osk",
    "sections": [{"section": "1", "text": "A miller\nlived there."}, {"section": "2", "text": "He was old."}],
    "questions": [
        {"question_id": "1", "cor_section": "1,2", "question": "Who was old?", "answer1": "the miller", "answer2": "",
         "answer4": "a miller"}
    ],
}  # fmt: skip
PAPER = {
    "paper_id": "p1",
    "source": ["We present LOOP-7 for 12 tasks.", "It works."],
    "target": ["LOOP-7 does 12 tasks."],
}
CONSTRAINT = {
    "key": 7,
    "prompt": "Say it without commas.",
    "instruction_id_list": ["punctuation:no_comma"],
    "kwargs": [{}],
}
FUNCTION = {
    "name": "geo.area",
    "description": "Area",
    "parameters": {
        "type": "dict",
        "properties": {"side": {"type": "float"}, "unit": {"type": "string"}},
        "required": ["side"],
    },
}
ASKED = {"id": "s_0", "question": [[{"role": "user", "content": "Area of a square of 3 km?"}]], "function": [FUNCTION]}
WANTED = {"id": "s_0", "ground_truth": [{"geo.area": {"side": [3.0], "unit": ["km", ""]}}]}
DIALOGUE = {
    "dialogue_id": "1",
    "turns": [
        {"speaker": "USER", "utterance": "A table at half past 11.", "frames": [
            {"service": "Tables_1", "state": {"slot_values": {"time": ["half past 11"]}}}]},
        {"speaker": "SYSTEM", "utterance": "11:30 for how many?", "frames": [{"service": "Tables_1"}]},
        {"speaker": "USER", "utterance": "Two.", "frames": [
            {"service": "Tables_1", "state": {"slot_values": {"time": ["11:30", "half past 11"], "people": ["2"]}}}]},
    ],
}  # fmt: skip
SCHEMA = {
    "service_name": "Tables_1",
    "description": "Book tables",
    "slots": [{"name": "time", "description": "When"}, {"name": "people", "description": "How many"}],
}

# task, its rows, the files beside them, right answers, wrong ones
SAMPLES: dict[str, tuple[list[dict[str, Any]], dict[str, list[Any]], list[str], list[str]]] = {
    "gsm8k": ([SUMS], {}, ["So\n#### 1002"], ["1002", "#### 1001"]),
    "aqua": ([ALGEBRA], {}, ["Answer: B", "B", "(b)", "The answer is (B).", "answer A? No. Answer: B"], ["Answer: C", "2"]),
    "squad": ([{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": QUESTIONS[:1]}]}], {}, ["osk."], ["Vell"]),
    "squad2": (
        [{"title": "t", "paragraphs": [{"context": PASSAGE, "qas": QUESTIONS[1:]}]}], {}, ["unanswerable", ""], ["120 km"]
    ),
    "fairytaleqa": ([TALE], {}, ["The miller.", "miller"], ["the mill"]),
    "scitldr": ([PAPER], {}, ["LOOP-7 for 12 tasks."], ["LOOP-8 for tasks."]),
    "e2e": (
        [{"mr": "name[Blue Spice], near[Café X]", "ref": "Blue Spice is near Café X."}],
        {},
        ['{"near": "Café X", "name": "Blue Spice"}'],
        ['{"name": "Blue Spice"}', '{"name": "Blue Spice", "near": "Café X", "food": "French"}', "{"],
    ),
    "sgd-slots": (
        [DIALOGUE],
        {"_schema": [SCHEMA]},
        ['{"people": "2", "time": "Half past 11"}', '{"time": "11:30", "people": "2"}'],
        ['{"time": "11:30"}', '{"time": "12:30", "people": "2"}', "[]"],
    ),
    "bfcl": (
        [ASKED],
        {"_answers": [WANTED]},
        [
            "<|tool_call_start|>[geo.area(side=3)]<|tool_call_end|>",
            'Sure. <|tool_call_start|>[{"name": "geo.area", "arguments": {"side": 3.0}}]<|tool_call_end|>',
            '<tool_call>\n{"name": "geo_area", "arguments": "{\\"side\\": 3, \\"unit\\": \\"KM\\"}"}\n</tool_call>',
            '<|python_tag|>{"name": "geo.area", "parameters": {"side": 3}}',
            "[geo.area(side=3)]",
        ],
        ["The area is 9.", "<|tool_call_start|>[geo.area(", "[geo.area(side=4)]", '{"name": "geo.area", "parameters": {}}'],
    ),
    "bfcl-irrelevance": (
        [ASKED], {}, ["I cannot.", "<|tool_call_start|>[", ""], ["[geo.area(side=3)]", '{"name": "geo.area", "parameters": {}}']
    ),
    "ifeval": ([CONSTRAINT], {}, ["It."], ["Well, it."]),
}  # fmt: skip


def needs(name: str) -> None:
    if name in ROUGE:
        pytest.importorskip("rouge_score", reason="rouge-score is not installed")


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def opened(name: str, file: Path | None, faults: Faults | None = None) -> tuple[Task, list[Example]]:
    task = built_in(name, {} if file is None else {"held_out": file}, faults=faults)
    return task, task.examples("held_out", None)


@pytest.mark.parametrize("name", SAMPLES)
def test_a_sample(name: str, tmp_path: Path) -> None:
    needs(name)
    rows, others, right, wrong = SAMPLES[name]
    for ending, beside in others.items():
        write(tmp_path / f"part.v1{ending}.jsonl", beside)
    task, (example,) = opened(name, write(tmp_path / "part.v1.jsonl", rows))
    assert example.task == name == task.name and example.messages[-1]["role"] == "user"
    for text in [*right, *(turn["content"] for turn in example.reference)]:
        found = judge(example, text)
        assert found.correct and found.fault is None, (text, found)
    for text in wrong:
        found = judge(example, text)
        assert not found.correct and found.fault is None and found.reason, (text, found)


def test_every_built_in_task_is_sampled_or_drawn() -> None:
    assert set(SAMPLES) == {name for name, parts in BUILT_IN.items() if parts.draw is None and parts.follow is None}


@pytest.mark.parametrize(
    "name", [name for name, parts in BUILT_IN.items() if parts.draw is not None and parts.follow is None]
)
def test_a_drawn_task(name: str) -> None:
    task = built_in(name, {}, seed=1)
    examples = task.examples("held_out", 60)
    assert examples == built_in(name, {}, seed=1).examples("held_out", 80)[:60]
    for example in examples:
        text = example.reference[0]["content"]
        assert judge(example, text).correct, (example, judge(example, text))
        wrong = "[f(a=1)]" if example.answer.get("calls") == [] else "I do not know"
        assert not judge(example, wrong).correct
    others = [judge(one, other.reference[0]["content"]).correct for one, other in itertools.pairwise(examples)]
    assert sum(others) <= sum(example.answer.get("calls") == [] for example in examples), "but for refusals, all differ"
    with pytest.raises(UserError, match="drawn from a seed"):
        built_in(name, {"held_out": Path("x.jsonl")})


def test_calls_are_asked_for_one_at_a_time_and_trained_on_by_the_list() -> None:
    task = built_in("function-calls", {}, seed=1)
    held_out = task.examples("held_out", 400)
    assert {len(each.messages) for each in held_out} == {1}
    assert {len(each.tools or []) for each in held_out} == {2, 3, 4, 5}
    assert 0.2 < sum(not each.answer["calls"] for each in held_out) / 400 < 0.3
    for example in task.examples("train", 60):
        on_offer = {each["name"] for each in example.answer["functions"]}
        turns = [*example.messages, *example.reference]
        replies = [parse_any_calls(turn["content"]) for turn in turns if turn["role"] == "assistant"]
        called = [call.name for calls in replies for call in calls]
        assert sorted(called) == sorted(on_offer), "every function on offer once, and no other"
        assert len(replies) - len(called) == len(on_offer) // 2
        assert judge(example, example.reference[0]["content"]).correct
        assert len({turn["content"] for turn in turns if turn["role"] == "user"}) == len(replies)


def test_no_request_in_a_conversation_to_train_on_is_a_held_out_prompt() -> None:
    task = built_in("function-calls", {}, seed=0)
    trained = {turn["content"] for each in task.examples("train", 300) for turn in each.messages}
    held_out = {each.messages[-1]["content"] for each in task.examples("held_out", 200)}
    assert sum(text.startswith("Set an alarm") for text in trained) > 100, "of the few hundred that there are"
    assert not trained & held_out


def test_a_drawn_call_is_worked_out_along_the_list_and_what_is_said_before_it_earns_nothing() -> None:
    for example in built_in("function-calls", {}, seed=2).examples("held_out", 60):
        reply = example.reference[0]["content"]
        on_offer = [each["name"] for each in example.answer["functions"]]
        looked_at = re.findall(r'"(\w+)": (yes|no)\. ', reply)
        wanted = [name for call in example.answer["calls"] for name in call]
        seen = on_offer[: on_offer.index(wanted[0]) + 1] if wanted else on_offer
        assert looked_at == [(name, "yes" if name in wanted else "no") for name in seen]
        said = "".join(f'"{name}": {verdict}. ' for name, verdict in looked_at)
        end = reply.removeprefix(said)
        assert without_calls(reply) == (said.strip() if wanted else "")
        assert judge(example, reply).correct and judge(example, reply) == judge(example, end)
        assert judge(example, said).correct == (not wanted), "a verdict is no call"


def test_the_fields_of_drawn_documents_stand_in_them() -> None:
    for name in ("receipts", "invoices"):
        for example in built_in(name, {}).examples("held_out", 30):
            text = example.messages[0]["content"].partition("Extract the data")[0].replace(",", "")
            assert f"{example.answer['object']['total']:.2f}" in text


REAL = {
    "gsm8k": ("gsm8k_train", 7473), "aqua": ("aqua_dev", 254), "squad": ("squad_v1.1_dev_35_articles", 6013),
    "squad2": ("squad_v2.0_dev", 11873), "fairytaleqa": ("fairytaleqa_val", 1025), "scitldr": ("scitldr_dev", 619),
    "e2e": ("e2e_cleaned_dev", 4299), "sgd-slots": ("sgd_dev", 1558), "bfcl": ("bfcl/multiple", 200),
    "bfcl-irrelevance": ("bfcl/irrelevance", 240), "ifeval": ("ifeval_even", 242),
}  # fmt: skip


@pytest.mark.parametrize("name", REAL)
def test_the_published_data(name: str) -> None:
    needs(name)
    file = DATA / f"{REAL[name][0]}.jsonl.xz"
    if not file.is_file():
        pytest.skip(f"the published data of {name} is not beside the checkout")
    _, examples = opened(name, file)
    assert len(examples) == REAL[name][1] and len({each.id for each in examples}) == len(examples)
    some = Random(0).sample(examples, 40)
    scores = [judge(each, each.reference[-1]["content"] if each.reference else "x") for each in some]
    assert not [score.fault for score in scores if score.fault]
    if name not in ("ifeval", "scitldr"):  # the one has no worked answers, the other's bring facts of their own
        assert all(score.correct for score in scores)


def test_rows_of_the_hubs_tables(tmp_path: Path) -> None:
    row = {
        "id": "q1",
        "title": "t",
        "context": PASSAGE,
        "question": "What?",
        "answers": {"text": ["Osk"], "answer_start": [4]},
    }
    _, (example,) = opened("squad", write(tmp_path / "hub.jsonl", [row]))
    assert example.id == "q1" and judge(example, "the Osk").correct


@pytest.mark.parametrize(
    "name, row, said",
    [
        ("gsm8k", {"question": "?", "answer": "5"}, "no '#### N'"),
        ("gsm8k", {"question": "?"}, "no 'answer'"),
        ("aqua", ALGEBRA | {"correct": "F"}, "none of A to E"),
        ("squad", {"title": "t", "paragraphs": [{"context": PASSAGE, "qas": QUESTIONS}]}, "squad2"),
        ("e2e", {"mr": "name", "ref": "x"}, "no list of slots"),
        ("ifeval", CONSTRAINT | {"instruction_id_list": ["x:y"]}, "none of IFEval's"),
        ("ifeval", CONSTRAINT | {"kwargs": []}, "settings of 0"),
        ("bfcl-irrelevance", ASKED | {"question": []}, "several turns"),
    ],
)
def test_a_row_of_another_kind_is_named(tmp_path: Path, name: str, row: dict[str, Any], said: str) -> None:
    file = write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=f"line 1 of .*{said}"):
        opened(name, file)


def test_missing_data_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gsm8k=FILE"):
        built_in("gsm8k", {})
    file = write(tmp_path / "alone.jsonl", [ASKED])
    with pytest.raises(UserError, match="possible_answer/alone.jsonl"):
        opened("bfcl", file)
    with pytest.raises(UserError, match="schema.json"):
        opened("sgd-slots", file)


def test_what_is_counted_of_calls(tmp_path: Path) -> None:
    write(tmp_path / "part_answers.jsonl", [WANTED])
    _, (wanted,) = opened("bfcl", write(tmp_path / "part.jsonl", [ASKED]))
    _, (irrelevant,) = opened("bfcl-irrelevance", write(tmp_path / "other.jsonl", [ASKED]))
    texts = ("[geo.area(side=3)]", "[geo.area(side=4)]", "<|tool_call_start|>[geo.area(", "No.")
    assert [judge(wanted, text).metrics for text in texts] == [
        {"valid": valid, "right_call": right} for valid, right in ((1, 1), (1, 0), (0, 0), (0, 0))
    ]
    assert [judge(irrelevant, text).metrics for text in texts] == [{"refused": refused} for refused in (0, 0, 0, 1)]
    assert [judge(irrelevant, text).correct for text in texts] == [False, False, True, True]


def test_parts_of_definitions() -> None:
    assert slots("name[A, B], customer rating[5 out of 5]") == {"name": "A, B", "customer rating": "5 out of 5"}
    assert chosen("Answer: A. No: the answer is option D") == "D" and chosen("The answer is a number.") is None
    assert facts("We use BERT on 12 tasks. Then iOS, of course; GPT-4 too.") == {"BERT", "12", "iOS", "GPT-4"}
    calls = [Call("a.b", {"x": [1, {"y": None}]}), Call("c", {})]
    hermes = "\n".join(f"<tool_call>\n{json.dumps(vars(each))}\n</tool_call>" for each in calls)
    llama = "; ".join(json.dumps({"name": each.name, "parameters": each.arguments}) for each in calls)
    assert all(parse_any_calls(text) == calls for text in (render_calls(calls), hermes, llama))
