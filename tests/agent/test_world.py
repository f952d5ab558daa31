"""The agent sees at run time what the pocket world trains on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from minnow.agent import SearchIndex, calculator_tool, run_agent, search_tool
from minnow.tasks import PocketWorld


@pytest.fixture(scope="module")
def world() -> PocketWorld:
    return PocketWorld(0, entities=300)


@pytest.mark.parametrize("task", ["search", "calculator"])
def test_ideal_calls_bring_the_results_trained_on(world: PocketWorld, task: str, scripted: Callable[..., Any]) -> None:
    examples = world.examples(task, "held_out", 20)
    scripts = {e.id: [m["content"] for m in e.reference if m["role"] == "assistant"] for e in examples}
    engine = scripted(**scripts)
    tools = [search_tool(SearchIndex.build(world.pages())), calculator_tool()]
    traces = run_agent(engine, engine.tokenizer, examples, tools)
    for example, trace in zip(examples, traces, strict=True):
        assert example.tools and all(schema in [tool.schema() for tool in tools] for schema in example.tools)
        reference = [*example.messages, *example.reference]
        assert [message["role"] for message in trace.messages] == [message["role"] for message in reference]
        for ours, theirs in zip(trace.messages, reference, strict=True):
            # The second page is one of several that mention the name; which one is free.
            assert ours["content"].partition("\n")[0] == theirs["content"].partition("\n")[0]
        assert trace.finish == "answer" and trace.answer == example.reference[-1]["content"]


def test_every_page_is_first_under_its_title(world: PocketWorld) -> None:
    pages = world.pages()
    index = SearchIndex.build(pages)
    assert all(index.search(page.title, 1)[0].id == page.id for page in pages)
