"""The two tools of the pocket world as text: schemas, calls in the LFM2.5 format, search results.

The agent calls :func:`format_hits` at run time, so what a model sees there is what it was trained on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import Any, Protocol

from minnow.data.calls import CALL_END, CALL_START, CallError, parse_calls, render_call
from minnow.tasks.names import split_of
from minnow.tasks.types import Draft, Score, Split

SEARCH_SCHEMA: dict[str, Any] = {"name": "search", "parameters": {"query": "string"}}
CALCULATOR_SCHEMA: dict[str, Any] = {"name": "calculator", "parameters": {"expression": "string"}}
SEARCH_HITS = 2
SENTENCES_SHOWN = 4
NO_HITS = "No page found."
NO_SUCH_TITLE = "Found no page called {query}."
_OWN_WORDS = re.compile(r"found\s+no\s+page\s+called|no\s+page\s+found", re.IGNORECASE)
LONGEST_TITLE = 40
"""Characters of a query that may be a title; longer ones, and those with a question mark, ask something."""


class Titled(Protocol):
    """Anything with a title and a text: a page, a search hit."""

    @property
    def title(self) -> str: ...
    @property
    def text(self) -> str: ...


def format_hits(query: str, pages: Sequence[Titled]) -> str:
    """The text that the search tool returns: the best two pages, "Title: their first four sentences".

    Where the query may be a title and is that of none of them, the first line says so, as encyclopaedias do: a model of a
    million parameters does not learn to compare the two (docs/results/agent.md). Of a whole question it would always be
    said, and tell nothing. Only the tool says so: where a page has these words, "..." stands for them.
    """
    shown, asked = pages[:SEARCH_HITS], " ".join(query.split())
    written = (f"{page.title}: {' '.join(sentences(page.text)[:SENTENCES_SHOWN])}" for page in shown)
    lines = [_OWN_WORDS.sub("...", line) for line in written]
    titles = {" ".join(page.title.split()).casefold() for page in shown}
    if asked.casefold() not in titles and 0 < len(asked) <= LONGEST_TITLE and "?" not in asked:
        lines.insert(0, NO_SUCH_TITLE.format(query=asked))
    return "\n".join(lines) or NO_HITS


def sentences(text: str) -> list[str]:
    """Split at white space after a full stop; keeps the stops."""
    return re.split(r"(?<=\.)\s+", text.strip())


def call_turn(name: str, **arguments: str) -> dict[str, Any]:
    """A turn that makes one call: ``<|tool_call_start|>[search(query="Velmora")]<|tool_call_end|>``."""
    return {"role": "assistant", "content": render_call(name, arguments)}


def first_call(text: str) -> dict[str, Any] | None:
    """The first call in ``text`` as {"name", "arguments"}; None where there is none that can be read.

    The agent is lenient about a token that is missing. A model is not taught to leave one out.
    """
    found = re.search(rf"{re.escape(CALL_START)}.*?{re.escape(CALL_END)}", text, re.DOTALL)
    try:
        calls = parse_calls(found[0]) if found else []
    except CallError:
        return None
    return {"name": calls[0].name, "arguments": calls[0].arguments} if calls else None


def score_call(answer: dict[str, Any], text: str) -> Score:
    """Score the first call of a tool task's opening turn: name and arguments must equal the reference's."""
    wanted, found = answer["calls"][0], first_call(text)
    if found is None:
        return Score.wrong("no readable tool call")
    return Score.right() if found == wanted else Score.wrong(f"called {found}, not {wanted}")


def score_answer(answer: dict[str, Any], text: str) -> Score:
    """Right when the final text is the gold name or number, alone or as "The … is GOLD."."""
    if CALL_START in text:
        return Score.wrong("called a tool instead of answering")
    found, gold = bare(text).casefold(), answer["gold"]
    return Score.right() if found == gold.casefold() else Score.wrong(f"answered {found[:60]!r}, not {gold!r}")


def bare(text: str) -> str:
    """An answer without the words around it: "GOLD" of "The … is GOLD."."""
    return re.sub(r"^the [a-z ]+? is ", "", " ".join(text.split()), flags=re.IGNORECASE).removesuffix(".").strip()


def draw_calculation(rng: Random, split: Split) -> Draft:
    """One calculator problem of ``split`` with its whole conversation; results are whole and not negative."""
    while True:
        first, second, sign = rng.randint(11, 999), rng.randint(11, 999), rng.choice("+-*")
        if sign == "-" and second > first:
            first, second = second, first
        expression = f"{first} {sign} {second}"
        if split_of(expression) == split:
            break
    result = str({"+": first + second, "-": first - second, "*": first * second}[sign])
    question = rng.choice(("Use the calculator: what is {}?", "Use the calculator to work out {}.")).format(expression)
    turns = [
        call_turn("calculator", expression=expression),
        {"role": "tool", "content": result},
        {"role": "assistant", "content": result},
    ]
    calls = [{"name": "calculator", "arguments": {"expression": expression}}]
    return Draft(question, turns, {"gold": result, "calls": calls}, [CALCULATOR_SCHEMA])
