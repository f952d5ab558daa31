"""benchmarks/agent/closed_book.py: the model without search has read the answer to what it is asked, word for word."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from random import Random
from types import ModuleType

import pytest

from minnow.data.tokenizer import Tokenizer
from minnow.tasks.made_world import make
from minnow.tasks.tools import score_answer

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks/agent/closed_book.py"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("closed_book", SCRIPT)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_has_read_every_page_that_is_there_and_every_question_of_one_hop(
    script: ModuleType, tokenizer: Tokenizer
) -> None:
    world = make(5, 600, 6, 6)
    entities = script.entities_of(world, 5)
    true = [page for page in world.pages if not page.id.startswith("trap")]
    assert {entity.id for entity in entities} == {page.id for page in true} and len(entities) == len(true)
    answers = {}
    for ids, trained in script.questions(entities, tokenizer):
        prompt = tuple(ids[: trained.index(True)])
        answers[prompt] = tokenizer.decode(token for token, each in zip(ids, trained, strict=True) if each)
    asked = [question for question in world.questions if len(question.path) == 1]
    assert len(asked) == 36
    for question in asked:
        assert score_answer({"gold": question.gold}, answers[tuple(tokenizer.prompt(question.messages))]).correct
    lines = [
        (tokenizer.decode(ids), tokenizer.decode(token for token, each in zip(ids, trained, strict=True) if each))
        for ids, trained in script.pages(entities, tokenizer, Random(0))
    ]
    assert len(lines) == script.ORDERS * len(entities) and len(set(lines)) > 2 * len(entities)
    for (line, trained), entity in zip(lines, [*entities] * script.ORDERS, strict=True):
        assert line == entity.name + trained
    for question in asked:
        title = question.path[0].title
        found = [line for line, _ in lines if line.startswith(f"{title}: ")]
        assert len(found) == script.ORDERS and all(question.gold in line for line in found)


def test_each_number_of_readings_is_a_run_of_its_own_length(script: ModuleType) -> None:
    runs = script.branches([8, 2, 4], 50.0)
    assert [(run.ratio, run.start, run.steps) for run in runs] == [(2, 70, 100), (4, 140, 200), (8, 280, 400)]
