"""Verifiers accept every reference and reject what has been spoilt."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.tasks import TASKS, Example, PocketWorld, Score, judge, verify
from minnow.tasks.arithmetic import worked
from minnow.tasks.types import SPLITS

WORLDS = [PocketWorld(seed, entities=250) for seed in range(3)]
TOOL_TASKS = ("search", "calculator")


def reply(example: Example) -> str:
    return example.reference[-1]["content"]


def some(task: str, n: int = 30) -> list[Example]:
    return [example for world in WORLDS for split in SPLITS for example in world.examples(task, split, n)]


@pytest.mark.parametrize("task", TASKS)
def test_every_reference_is_correct(task: str) -> None:
    for example in some(task):
        score = verify(example, reply(example))
        assert score.correct and score.value == 1.0, (example, score)
        assert verify(example, reply(example) + "<|im_end|>").correct


def test_every_loop_prone_reference_is_correct() -> None:
    for world in WORLDS:
        for split in SPLITS:
            for example in world.loop_prone(split, 80):
                assert verify(example, reply(example)).correct, example


@pytest.mark.parametrize("task", TASKS)
def test_another_examples_reply_is_wrong(task: str) -> None:
    examples = some(task)
    for example, other in itertools.pairwise(examples):
        key = {"page": "title", "question": "gold", "search": "gold", "calculator": "gold"}.get(task)
        golds = [e.answer[key] if key else reply(e) for e in (example, other)]
        if golds[0] != golds[1]:
            assert not verify(example, reply(other)).correct, (example, other)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("text", ["", " ", ".", "The The The The", "<|tool_call_start|>[", "[]", "{}", "\x00"])
def test_rubbish_scores_low(task: str, text: str) -> None:
    for example in some(task, 5):
        score = verify(example, text)
        assert not score.correct and 0.0 <= score.value <= 0.5 and score.reason


@settings(deadline=None, derandomize=True, max_examples=60)
@given(text=st.text(max_size=80), task=st.sampled_from(TASKS))
def test_any_text_gets_a_score(text: str, task: str) -> None:
    example = WORLDS[0].examples(task, "train", 1)[0]
    score = verify(example, text)
    assert 0.0 <= score.value <= 1.0 and (not score.correct or score.value > 0.8)


@settings(deadline=None, derandomize=True)
@given(numbers=st.lists(st.integers(0, 999), min_size=2, max_size=9), signs=st.data())
def test_worked_sums_agree_with_python(numbers: list[int], signs: st.DataObject) -> None:
    total, chosen = numbers[0], ""
    for number in numbers[1:]:
        sign = signs.draw(st.sampled_from("+-")) if number <= total else "+"
        total += number if sign == "+" else -number
        chosen += sign
    text, result = worked(numbers, chosen)
    assert result == total and text.endswith(f"Answer: {total}.")
    # Every "x+y+c=r" on the way is true, and every line's result is that of its header.
    for left, right in re.findall(r"([\d+-]+)=(\d+)", text):
        assert eval(left) == int(right)
    for header, right in re.findall(r"^(\d+ [+-] \d+):.* so (\d+)\.$", text, re.MULTILINE):
        assert eval(header) == int(right)


def test_arithmetic_layout() -> None:
    text, _ = worked([37, 48, 16], "+-")
    assert text == "37 + 48: 7+8=15, 3+4+1=8, so 85.\n85 - 16: 15-6=9, 8-1-1=6, so 69.\nAnswer: 69."


def test_arithmetic_reads_the_last_answer() -> None:
    example = replace(WORLDS[0].examples("arithmetic", "train", 1)[0], answer=70)
    assert verify(example, "Answer: 7. Answer: 70.").correct
    assert not verify(example, "Answer: 70. Answer: 7.").correct
    assert not verify(example, "so 70.").correct
    assert not verify(example, "Answer: 700.").correct


def test_walks_are_checked_edge_by_edge() -> None:
    answer = {"edges": [["a", "b"], ["b", "c"], ["a", "d"], ["d", "e"], ["e", "a"]], "start": "a", "goal": "c"}
    example = replace(WORLDS[0].examples("walk", "train", 1)[0], answer=answer)
    assert verify(example, "Walk: a b c.").correct
    for text, reason in {
        "a b c": "form",
        "Walk: a b c": "form",
        "Walk: b c.": "starts at b",
        "Walk: a b.": "ends at b",
        "Walk: a c.": "no edge a c",
        "Walk: a d e a b c.": "twice",
    }.items():
        assert reason in verify(example, text).reason


def test_every_walk_offers_a_cycle_and_one_way_through() -> None:
    for example in some("walk"):
        edges = [tuple(edge) for edge in example.answer["edges"]]
        start, goal = example.answer["start"], example.answer["goal"]
        assert any(tip == start for _, tip in edges), "no way round"
        nodes = {node for edge in edges for node in edge}
        assert len(edges) == len(nodes)  # connected with exactly one cycle
        assert sum(goal in edge for edge in edges) == 1  # the goal is a tip, so one path without repeats leads to it


def test_enumeration_form() -> None:
    example = WORLDS[0].examples("enumeration", "held_out", 1)[0]
    opening, names = example.answer["opening"], example.answer["names"]

    def listed(items: list[str], end: str = ".") -> Score:
        return verify(example, opening + ", ".join(items) + end)

    assert len(names) == 12 and listed(names).correct and listed(names[:8]).correct
    assert verify(example, opening + "\n".join(names) + ".").correct
    assert "open" in verify(example, ", ".join(names) + ".").reason
    assert "full stop" in listed(names, end="").reason
    assert "distinct" in listed([*names[:8], *names[:4]]).reason
    assert "wanted 8 to 12" in listed(names[:7]).reason
    assert "wanted 8 to 12" in listed([*names, names[0]]).reason
    assert "none of the names" in listed([*names[:8], "Nowhere"]).reason
    looped = listed(names[:2] * 100, end="")
    assert not looped.correct and looped.value < 0.01


def test_page_form() -> None:
    example = next(e for e in WORLDS[0].loop_prone("held_out", 8) if e.task == "page")
    text = reply(example)
    parts = text.split(". ")
    assert "repeats" in verify(example, f"{text} {parts[-1]}").reason
    assert "start" in verify(example, f"The {text}").reason
    assert "full stop" in verify(example, text.removesuffix(".")).reason
    assert "sentences, wanted" in verify(example, parts[0] + ".").reason
    assert "well formed" in verify(example, text + " and so on.").reason
    assert verify(example, f"{parts[0]}. " * 100).value < 0.01


def test_extraction_scores_fields() -> None:
    answer = {"kind": "booking", "name": "Dana Orlu", "people": 4}
    example = replace(WORLDS[0].examples("extraction", "train", 1)[0], answer=answer)
    assert verify(example, json.dumps(answer)).correct
    assert verify(example, json.dumps(dict(reversed(answer.items())))).correct  # JSON objects have no order
    assert verify(example, json.dumps(answer | {"people": 5})).value == pytest.approx(2 / 3)
    assert not verify(example, json.dumps(answer | {"people": "4"})).correct
    assert not verify(example, json.dumps(answer | {"people": 4.0})).correct
    assert verify(example, json.dumps(answer | {"day": "Friday"})).value == pytest.approx(6 / 7)
    assert verify(example, json.dumps([answer])).value == 0.0


def test_summary_counts_facts() -> None:
    example = WORLDS[0].examples("summary", "train", 1)[0]
    text, facts = reply(example), example.answer["facts"]
    score = verify(example, text.replace(facts[0], "Nowhere"))
    assert not score.correct and score.value == pytest.approx(1 - 1 / len(facts))
    report = example.messages[0]["content"].partition(": ")[2]
    assert not verify(example, report).correct
    assert not verify(example, text + " It was fine.").correct
    assert not verify(example, text.removesuffix(".")).correct
    assert not verify(example, text.removesuffix(".") + " indeed" * 30 + ".").correct
    number = re.search(r"\d+", text)
    assert number and not verify(example, text.replace(number[0], number[0] + "1")).correct


def test_answers_are_matched_whole() -> None:
    example = replace(WORLDS[0].examples("question", "train", 1)[0], answer={"gold": "Val Oska", "hops": 1})
    for text in ("The river is Val Oska.", "Val Oska", "val oska.", " The  river is\nVal Oska. "):
        assert verify(example, text).correct
    for text in ("The river is Val Oskan.", "The river is Oska.", "Val Oska or Val Tor.", "It may be Val Oska."):
        assert not verify(example, text).correct


@pytest.mark.parametrize("task", TOOL_TASKS)
def test_first_call_is_scored(task: str) -> None:
    for example in some(task, 10):
        call = example.reference[0]["content"]
        assert judge(example, call).correct
        assert judge(example, f"Let me see. {call}").correct
        assert not verify(example, call).correct  # a call is not an answer
        assert not judge(example, reply(example)).correct
        assert not judge(example, call.replace('="', '="x')).correct
        assert not judge(example, call.replace("[", "[x")).correct
        assert not judge(example, call.removesuffix("<|tool_call_end|>")).correct
    spoilt = ("[]", "search", "[search(f())]", '[search("a")]', "[search(query=)]", "[1]", "[" * 500, "[search(**a)]")
    for body in spoilt:
        assert not judge(example, f"<|tool_call_start|>{body}<|tool_call_end|>").correct
