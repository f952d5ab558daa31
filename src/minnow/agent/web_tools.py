"""``web_search`` and ``open_page`` over any search engine, in answers that fit a small context."""

from __future__ import annotations

from minnow.agent.pages import best_passages
from minnow.agent.search import SearchEngine
from minnow.agent.tools import Tool

RESULTS = 5
SNIPPET = 300
"""Characters of one result: the part of its text that fits the query best."""
PAGE = 1500
"""Characters that are shown of a page."""


def web_tools(engine: SearchEngine, results: int = RESULTS, page: int = PAGE) -> list[Tool]:
    """The two tools; their answers are text from outside.

    Args:
        results: shown for a search.
        page: characters shown of a page. Of a longer one these are the passages that fit best what the model looks for,
            each with its place.
    """

    def web_search(query: str) -> str:
        lines = []
        for place, hit in enumerate(engine.search(query, results), start=1):
            said = " … ".join(each.text.strip() for each in best_passages(hit.text, query, SNIPPET, hit.title))
            lines.append(f"{place}. {hit.title}\n{hit.url}\n{said or hit.text[:SNIPPET]}")
        return "\n".join(lines) or "No page found; try other words."

    def open_page(url: str, looking_for: str = "") -> str:
        found = engine.open(url)
        head = f"{found.title}\n{found.url}"
        if len(found.text) <= page:
            return f"{head}\n{found.text}"
        shown = best_passages(found.text, looking_for, page, found.title)
        parts = [f"[{each.start}–{each.end}] {each.text.strip()}" for each in shown]
        about = "passages that fit best" if looking_for else "the beginning"
        cut = " or more" if found.cut else ""
        return "\n".join([f"{head} ({len(found.text)}{cut} characters, {about})", *parts])

    return [
        Tool(
            "web_search",
            "Find pages for a few words; gives their titles, addresses and what they say.",
            {"query": "string"},
            web_search,
            outside=True,
        ),
        Tool(
            "open_page",
            "Read a page by its address; of a long one, the passages about looking_for.",
            {"url": "string", "looking_for": "string"},
            open_page,
            frozenset({"looking_for"}),
            outside=True,
        ),
    ]
