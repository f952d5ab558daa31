"""Verifiers of a user's own prompts, and what is sound where nothing is right."""

from __future__ import annotations

from typing import Any

import pytest

from minnow.tasks.given import Given, expected, is_open, rules, verifier_for, verify_given
from minnow.tasks.types import Example

PROSE = "The harbour was quiet that morning and the boats lay still while a few gulls looked for bread on the pier."


@pytest.mark.parametrize(
    ("answer", "text", "correct"),
    [
        (Given("regex", r"^\d{4}-\d{2}$"), "2026-11", True),
        (Given("regex", r"\bVelm\b"), "It is Velmora.", False),
        (Given("number", 12), "So there are 12.", True),
        (Given("exact", "Velm"), " Velm ", True),
        (Given("json", {"a": 1}), '{"a": 1}', True),
        (Given("json", {"a": 1}), '{"a": 2}', False),
        (Given("rules"), PROSE, True),
    ],
)
def test_each_answer_has_its_own_verifier(answer: Given, text: str, correct: bool) -> None:
    assert verify_given(answer, text).correct is correct


@pytest.mark.parametrize(("answer", "name"), [(None, "rules"), (3, "number"), (0.5, "number"), ({}, "json"),
                                              ("x", "exact"), (["x", "y"], "exact"), (True, "exact")])  # fmt: skip
def test_an_answer_tells_what_compares_it(answer: Any, name: str) -> None:
    assert verifier_for(answer) == name


def test_form_falls_with_repetition_and_with_saying_nothing() -> None:
    twice = rules(None, f"{PROSE} {PROSE}")
    assert rules(None, PROSE).value == 1.0 and 0.4 < twice.value < 0.7
    assert rules(None, "and so on " * 60).value == 0.0 and rules(None, " \n").value == 0.0
    assert rules(None, "Four words are few.").value == 0.25 and not rules(None, "Four words are few.").correct


def test_open_examples_are_those_without_an_answer() -> None:
    made = [Example("e", "t", "train", [], [], answer) for answer in (Given("rules"), Given("number", 1), {"a": 1})]
    assert [is_open(each) for each in made] == [True, False, False]
    assert [expected(each) for each in made] == [None, 1, {"a": 1}], "as its source wrote it"
