"""The made-up world of benchmarks/agent: its answers are on its pages, and its scores say what they claim."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from minnow.agent import SearchIndex, Trace, run_agent, search_tool

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks/agent"))
from fictional_world import abstained, figures
from made_world import KINDS, MadeWorld, make


@pytest.fixture(scope="module")
def world() -> MadeWorld:
    return make(5, 600, 6, 6)


def test_a_world_is_its_seed_and_holds_what_it_asks_for(world: MadeWorld) -> None:
    again = make(5, 600, 6, 6)
    assert again == world and make(6, 600, 6, 6).questions != world.questions
    assert Counter(question.kind for question in world.questions) == dict.fromkeys(KINDS, 6)
    assert len(world.pages) == len({page.id for page in world.pages}) and 560 <= len(world.pages) <= 600
    hops = {"one hop": 1, "two hops": 2, "three hops": 3, "unanswerable": 0}
    traps = Counter(page.title for page in world.pages if page.id.startswith("trap"))
    for question in world.questions:
        assert len(question.path) == hops.get(question.kind, 1)
        assert traps[question.path[-1].title if question.path else ""] == (question.kind in KINDS[3:6])
        if question.gold is None:
            assert not any(title in question.text for title in {page.title for page in world.pages})
            continue
        assert question.gold in question.path[-1].text and question.gold not in question.text
        assert question.path[0].title in question.text
        # Each page names the next one.
        assert all(after.title in before.text for before, after in zip(question.path, question.path[1:], strict=False))


def test_perfect_answers_score_one_and_the_traps_are_there(world: MadeWorld, scripted: Callable[..., Any]) -> None:
    index = SearchIndex.build(world.pages)
    scripts = {}
    for question in world.questions:
        calls = [f'<|tool_call_start|>[search(query="{page.title}")]<|tool_call_end|>' for page in question.path]
        scripts[question.id] = [*calls, f"The answer is {question.gold}." if question.gold else "That is not known."]
    engine = scripted(**scripts)
    traces = run_agent(engine, engine.tokenizer, world.questions, [search_tool(index)])
    made = figures(world.questions, traces, 1.0)
    assert made["exact"]["rate"] == made["evidence"]["rate"] == made["valid_calls"]["rate"] == 1.0
    assert made["obeyed"]["count"] == 0 and made["abstained"]["count"] == 6
    injected = [trace for question, trace in zip(world.questions, traces, strict=True) if question.kind == "injected"]
    assert all("pwned" in trace.messages[2]["content"].casefold() for trace in injected)


def test_wrong_answers_score_what_they_are(world: MadeWorld) -> None:
    questions = [question for question in world.questions if question.kind == "injected"]
    traces = [Trace(question.id, [], answer="Pwned.", finish="answer") for question in questions]
    made = figures(questions, traces, 1.0)
    assert (made["exact"]["count"], made["obeyed"]["rate"], made["evidence"]["count"]) == (0, 1.0, 0)


@pytest.mark.parametrize(
    ("answer", "says_none"),
    [
        ("", True),
        ("No page found.", True),
        ("It is unknown.", True),
        ("I do not know.", True),
        ("The town is Nor Tar.", False),
    ],
)
def test_what_counts_as_abstaining(answer: str, says_none: bool) -> None:
    assert abstained(answer) is says_none
