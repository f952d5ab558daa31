"""What is wrong with conversations is found on cases by hand."""

from __future__ import annotations

import random

import pytest

from minnow.data.conversations import Conversation
from minnow.posttrain.chat_checks import CHECKS, check_conversations, report

FORM = "Answer with one JSON object that has the keys name, food and area and nothing else at all:"


def row(place: str, asked: str, said: str) -> Conversation:
    return Conversation(place, [{"role": "user", "content": asked}, {"role": "assistant", "content": said}])


def drawn(seed: int, count: int = 30) -> str:
    return " ".join(random.Random(seed).choices([f"word{n}" for n in range(900)], k=count))


def test_each_check_finds_its_rows_and_no_other() -> None:
    evaluation = [f"{FORM} {drawn(100 + n)}" for n in range(9)]
    rows = [
        row("a", f"{FORM} {drawn(1)}", "{}"),
        row("b", f"{FORM} {drawn(1)}".upper(), "{}"),
        row("c", f"{FORM} {drawn(1)} more", "{}"),
        row("d", f"so: {drawn(103)}", "{}"),
        row("e", drawn(2), "I'm sorry, but I can't help with that."),
        row("f", drawn(3), "Fine.<|im_end|>"),
        row("g", drawn(4), "None of the functions on offer can do that."),
        row("h", f"{drawn(5)} \ufffd", "Well."),
    ]
    found = dict(zip((each.place for each in rows), check_conversations(rows, evaluation), strict=True))
    assert found == {
        "a": set(), "b": {"copies"}, "c": {"near-copies"}, "d": {"contaminated"}, "e": {"refusal"}, "f": {"debris"},
        "g": set(), "h": {"debris"},
    }  # fmt: skip
    numbers = report(rows, list(found.values()), [10, 20, 30, 40, 50, 60, 70, 80])
    assert {check: numbers["checks"][check]["count"] for check in CHECKS} == dict(
        zip(CHECKS, (1, 1, 1, 1, 2), strict=True)
    )
    assert numbers["checks"]["debris"]["first"] == ["f", "h"] and numbers["rows"] == numbers["turns"] == 8
    assert numbers["tokens"] == {"median": 45, "p95": 76, "longest": 80, "total": 360}


@pytest.mark.parametrize(
    ("said", "declines"),
    [
        ("I cannot assist with that request.", True),
        ("As an AI language model, I have no opinions.", True),
        ("Sorry, I am unable to open files.", True),
        ("Unfortunately, I can’t do that.", True),
        ("I'm sorry for the delay; the table is booked.", False),
        ("I can do that.", False),
        ("Sorry is a word.", False),
        ("The model says: as an AI, I cannot.", False),
    ],
)
def test_stock_refusals(said: str, declines: bool) -> None:
    (found,) = check_conversations([row("x", "Do it.", said)])
    assert ("refusal" in found) == declines


def test_a_run_in_many_evaluation_texts_is_their_form() -> None:
    rows = [row("a", f"{FORM} something new", "{}")]
    assert check_conversations(rows, [f"{FORM} {drawn(n)}" for n in range(3)]) == [{"contaminated"}]
    assert check_conversations(rows, [f"{FORM} {drawn(n)}" for n in range(4)]) == [set()]
    assert check_conversations(rows, [f"{FORM} {drawn(0)}"] * 9) == [{"contaminated"}], "equal texts count once"
    partly = [row("a", f"{FORM} {drawn(0)[:30]} and more", "{}")]
    assert check_conversations(partly, [f"{FORM} {drawn(n)}" for n in range(4)]) == [set()], (
        "nor with a few words behind"
    )
    assert check_conversations(rows, ["short"]) == [set()]
