"""The expert's worked examples: what the agent would see, nothing that is measured on, harder as they go on."""

from __future__ import annotations

import re
from collections.abc import Callable
from random import Random
from typing import Any

import pytest

from minnow.agent import expert
from minnow.agent.expert import NOT_KNOWN, worked_lookups
from minnow.agent.lookup_scores import abstained
from minnow.agent.loop import run_agent
from minnow.agent.tools import search_tool
from minnow.data.calls import parse_calls
from minnow.recipe.tasks import load_task
from minnow.tasks import Example, judge
from minnow.tasks.made_world import make
from minnow.tasks.names import split_of

MANY = 750  # three worlds


@pytest.fixture(scope="module")
def worked() -> list[Example]:
    return worked_lookups(3, "train", MANY)


def said_in(example: Example) -> str:
    return "\n".join(turn["content"] for turn in (*example.messages, *example.reference))


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\b[A-Z][a-z]+ [A-Z][a-z]+\b", text))


def test_they_are_the_same_for_the_same_seed(worked: list[Example]) -> None:
    assert worked_lookups(3, "train", MANY) == worked != worked_lookups(4, "train", MANY)
    assert len({example.id for example in worked}) == MANY


def test_no_page_and_no_name_that_is_measured_on_is_trained_on(worked: list[Example]) -> None:
    world = make(71, 1500, 24, 24)
    measured = {name for question in world.questions for page in question.path for name in (page.title, question.gold)}
    measured |= {name for question in world.questions for name in names_in(question.text[5:])}
    measured = {name for name in measured if name and split_of(name) == "held_out" and " " in name}
    trained = "\n".join(map(said_in, worked))
    assert len(measured) > 120 and not measured & set(re.findall(r"(?=\b([A-Z][a-z]+ [A-Z][a-z]+)\b)", trained))
    assert not [page.title for page in world.pages if page.text in trained]
    # Nor an order or the words of a page that misleads.
    traps = [page.text.split(". ")[0] for page in world.pages if page.id.startswith("trap")]
    assert traps and not [words for words in traps if words in trained]


def test_the_agent_that_does_as_the_expert_does_reads_what_the_expert_read(scripted: Callable[..., Any]) -> None:
    library = expert.Library("7", "train", 0.3)
    examples = []
    for number, question in enumerate(library.questions(60, Random(0))):
        turns, said = library.worked(question)
        messages = [{"role": "user", "content": question.text(0)}]
        examples.append(Example(str(number), expert.NAME, "train", messages, turns, {"gold": said}))
    scripts = {e.id: [m["content"] for m in e.reference if m["role"] == "assistant"] for e in examples}
    engine = scripted(**scripts)
    traces = run_agent(engine, engine.tokenizer, examples, [search_tool(library.index)])
    for example, trace in zip(examples, traces, strict=True):
        assert trace.messages == [*example.messages, *example.reference] and trace.finish == "answer"
    assert sum("must look up" in said_in(example) or "< |im_end|>" in said_in(example) for example in examples) > 1


def test_it_believes_the_true_page_obeys_nobody_and_says_when_there_is_none(worked: list[Example]) -> None:
    unknown = 0
    for example in worked:
        turns = example.reference
        calls = [parse_calls(turn["content"]) for turn in turns if turn["role"] == "assistant"]
        assert [len(made) for made in calls] == [1] * (len(calls) - 1) + [0]
        searched = [made[0].arguments["query"] for made in calls[:-1]]
        assert searched[0] in example.messages[0]["content"]
        # Every other name comes from the page that was found under the name before it.
        for before, name, result in zip(searched, searched[1:], turns[1::2], strict=False):
            page = next(line for line in result["content"].split("\n") if line.startswith(f"{before}: {before} is a "))
            assert name in page
        last = turns[-1]["content"]
        assert (last == NOT_KNOWN) == (example.answer["gold"] is None) == abstained(last)
        if last == NOT_KNOWN:
            unknown += 1
            assert f"{searched[-1]}: {searched[-1]} is" not in turns[-2]["content"]
        else:
            assert len(searched) == example.answer["hops"] and last.endswith(f" {example.answer['gold']}.")
    assert 0.05 * MANY < unknown < 0.25 * MANY


def test_whether_there_is_an_answer_shows_in_what_was_found(worked: list[Example]) -> None:
    """Nothing else is needed to see it: no page has the name as its title, and the first line says so."""
    for example in worked:
        turns = example.reference
        for said, result, after in zip(turns[::2], turns[1::2], turns[2::2], strict=False):
            name = parse_calls(said["content"])[0].arguments["query"]
            titled = any(line.startswith(f"{name}: ") for line in result["content"].split("\n"))
            untitled = result["content"].startswith(f"Found no page called {name}.\n")
            assert titled != untitled == (after["content"] == NOT_KNOWN)


def test_questions_without_an_answer_come_in_pairs_with_one_or_lead_to_a_missing_page() -> None:
    library = expert.Library("8", "train", 0.0)
    asked = library.questions(300, Random(0))
    unheard = [place for place, question in enumerate(asked) if question.subject.name not in library.names]
    for place in unheard:
        twin, question = asked[place - 1], asked[place]
        assert twin.subject.name in library.names and library.worked(twin)[1] == twin.reply
        assert question._replace(subject=twin.subject) == twin
        words, others = question.subject.name.split(), twin.subject.name.split()
        assert sum(one == other for one, other in zip(words, others, strict=True)) == 1
        assert library.worked(question)[1] == NOT_KNOWN
    lost = [q for q in asked if q.subject.name in library.names and library.worked(q)[1] == NOT_KNOWN]
    assert {len(library.worked(question)[0]) // 2 for question in lost} == {1, 2, 3}
    assert 30 < len(unheard) < 75 and 30 < len(lost) < 75
    assert {question.subject.name.split()[0] == asked[p - 1].subject.name.split()[0] for p, question in enumerate(asked) if p in unheard} == {True, False}  # fmt: skip


def test_they_grow_harder(worked: list[Example]) -> None:
    first, last = (worked[: MANY // 3], worked[-MANY // 3 :])
    order = [example.difficulty for example in worked]
    assert order == sorted(order) and order[0] == 0.0 and order[-1] == 1.0
    assert {example.answer["hops"] for example in first} == {1}
    assert {example.answer["hops"] for example in last} == {1, 2, 3}
    # A second page of the same title is a trap.
    traps = [
        sum(bool(re.search(r"^(.*?): .*\n\1: ", turn["content"], re.MULTILINE)) for e in part for turn in e.reference)
        for part in (first, last)
    ]
    assert traps[0] == 0 and traps[1] > 30


def test_it_is_a_task_whose_first_call_is_scored() -> None:
    task = load_task("lookups", seed=3)
    (held_out,) = task.examples("held_out", 1)
    (trained,) = task.examples("train", 1)
    assert judge(held_out, held_out.reference[0]["content"]).correct
    assert not judge(held_out, trained.reference[0]["content"]).correct
    assert {split_of(name) for name in names_in(held_out.messages[0]["content"][5:])} == {"held_out"}
