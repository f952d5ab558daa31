from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest

from minnow.agent.long_context import SelfAsker, document_tools, map_reduce, parts_of
from minnow.agent.tools import call_tool
from minnow.data.calls import Call, CallError
from minnow.data.tokenizer import Tokenizer
from minnow.rollout import Rollout, Sampling

FILLER = "The town has a market and a church. Many visitors come every year. "
TEXT = FILLER * 90 + "The mayor is Dana Pryl. " + FILLER * 90 + "The bridge is of 1612. " + FILLER * 90


class Reader:
    """An engine that answers a part from what stands in it."""

    def __init__(self, tokenizer: Tokenizer, say: Callable[[str], str]) -> None:
        self.tokenizer, self.say, self.read = tokenizer, say, list[str]()

    def generate(self, prompts: Sequence[tuple[str, list[int]]], sampling: Sampling) -> list[Rollout]:
        answers = []
        for name, ids in prompts:
            self.read.append(self.tokenizer.decode(ids))
            said = self.tokenizer.encode_chat(self.say(self.read[-1]))
            answers.append(
                Rollout(name, ids, [*said, self.tokenizer.eos_id], self.tokenizer.decode(said), "stop", sampling)
            )
        return answers


@pytest.fixture
def asker(tokenizer: Tokenizer) -> Callable[..., SelfAsker]:
    def make(say: Callable[[str], str], **settings: Any) -> SelfAsker:
        return SelfAsker(Reader(tokenizer, say), tokenizer, part=3000, **settings)

    return make


def mayor(prompt: str) -> str:
    return "Dana Pryl." if "Dana Pryl" in prompt else "Nothing."


def test_parts_are_whole_sentences_that_cover_the_text() -> None:
    parts = parts_of(TEXT, 3000)
    assert all(TEXT[start:end] == text and len(text) <= 3000 for start, end, text in parts)
    assert [end for _, end, _ in parts[:-1]] == [start for start, _, _ in parts[1:]]
    assert parts_of(TEXT, 3000, 100, 200) == [(100, 200, TEXT[100:200])]


def test_map_reduce_asks_every_part_once_and_then_the_answers(asker: Callable[..., SelfAsker]) -> None:
    one = asker(mayor)
    assert map_reduce(TEXT, "Who is the mayor?", one) == "Dana Pryl."
    assert [(each.start, each.end) for each in one.asked] == [(start, end) for start, end, _ in parts_of(TEXT, 3000)]

    def both(prompt: str) -> str:
        if "Notes from the parts" in prompt:
            return "Dana Pryl, of 1612" if "- Dana" in prompt and "- 1612" in prompt else "?"
        return "Dana Pryl" if "Dana Pryl" in prompt else "1612" if "1612" in prompt else "nothing"

    two = asker(both)
    assert map_reduce(TEXT, "Who and when?", two) == "Dana Pryl, of 1612"
    assert len(two.asked) == len(parts_of(TEXT, 3000)) + 1 and two.as_dict()[-1]["answer"] == "Dana Pryl, of 1612"
    assert map_reduce(TEXT, "Why?", asker(lambda prompt: "Nothing.")) == ""


def test_what_does_not_get_shorter_or_costs_too_much_is_refused(asker: Callable[..., SelfAsker]) -> None:
    long = asker(lambda prompt: f"{len(prompt)} " * 2000)
    with pytest.raises(CallError, match="no shorter"):
        map_reduce(TEXT, "What?", long)
    poor = asker(mayor, budget=3)
    with pytest.raises(CallError, match="more than the 3 that are left"):
        map_reduce(TEXT, "What?", poor)
    assert poor.asked == []


def test_the_document_is_searched_read_and_asked(asker: Callable[..., SelfAsker]) -> None:
    spent = asker(mayor, budget=5)
    tools = document_tools(TEXT, spent)
    assert all(tool.outside and not tool.effects for tool in tools)

    def call(name: str, **arguments: Any) -> str:
        return call_tool(tools, Call(name, arguments), 4000)[0]

    found = call("find", query="mayor")
    start, end = map(int, found[1 : found.index("]")].split("–"))
    assert "Dana Pryl" in TEXT[start:end] and TEXT[start:end].strip() in found
    assert call("read", start=start, length=5) == f"[{start}–{start + 5} of {len(TEXT)}] {TEXT[start : start + 5]}"
    assert len(call("read", start=0, length=10**9)) < 1600
    assert call("ask", question="Who is the mayor?", start=start, end=end) == f"[{start}–{end}] Dana Pryl."
    for wrong in ({"start": -1}, {"start": len(TEXT)}):
        assert call("read", **wrong) == f"error: the document has characters 0 to {len(TEXT)}."
    assert "are left" in call("ask", question="x", start=0, end=len(TEXT)) and len(spent.asked) == 1
