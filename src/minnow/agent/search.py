"""Where a model searches: a local index, DuckDuckGo, SearXNG, Brave or Tavily, all behind one small protocol."""

from __future__ import annotations

import html
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar
from urllib.parse import urlencode

from minnow.agent.fetch import Fetcher, FetchError
from minnow.agent.index import PageIndex
from minnow.agent.pages import Page, PageError, page_of
from minnow.data.calls import CallError
from minnow.errors import UserError

T = TypeVar("T")
TRIES = 3
LONGEST_PAUSE = 10.0  # seconds before the next try, whatever the server asks for
KEYS = {"brave": "BRAVE_API_KEY", "tavily": "TAVILY_API_KEY"}
"""The environment variables that hold the keys of paid search engines."""


class SearchError(CallError):
    """A search or a page that failed for good: one sentence for the model."""


@dataclass(frozen=True)
class Found:
    """A search result; ``text`` is the engine's snippet, or the whole page where that is at hand."""

    url: str
    title: str
    text: str


class SearchEngine(Protocol):
    """Anything that finds pages for words and gives their text."""

    def search(self, query: str, k: int) -> list[Found]:
        """The ``k`` best pages, best first.

        Raises:
            SearchError: the engine is down, limits the rate or answers in another form.
        """
        ...

    def open(self, url: str) -> Page:
        """A page by its address.

        Raises:
            SearchError: there is no such page, or it cannot be read.
        """
        ...


@dataclass(frozen=True)
class LocalSearch:
    """Pages of an index; their ids are their addresses."""

    index: PageIndex

    def search(self, query: str, k: int) -> list[Found]:
        return [Found(hit.id, hit.title, hit.text) for hit in self.index.search(query, k)]

    def open(self, url: str) -> Page:
        page = self.index.page(url)
        if page is None:
            raise SearchError(f"there is no page {url[:200]}; use an address that web_search gave.")
        return Page(page.id, page.title, page.text)


Results = Callable[[str, int], list[Found]]


@dataclass(frozen=True)
class WebSearch:
    """A search engine of the web; pages are fetched by :class:`minnow.agent.fetch.Fetcher`.

    Attributes:
        results: asks the engine once.
        pause: seconds before the second try; doubled before the third.
    """

    name: str
    results: Results
    fetcher: Fetcher = field(default_factory=Fetcher)
    pause: float = 0.5

    def search(self, query: str, k: int) -> list[Found]:
        return self._tried(lambda: self.results(query, k), self.name)[:k]

    def open(self, url: str) -> Page:
        def read() -> Page:
            got = self.fetcher.get(url)
            return page_of(got.url, got.body, got.content_type, got.charset, got.cut)

        return self._tried(read, "the page")

    def _tried(self, ask: Callable[[], T], what: str) -> T:
        for attempt in range(TRIES):
            try:
                return ask()
            except PageError as error:
                raise SearchError(f"{what} cannot be read: {error}") from error
            except FetchError as error:
                if not error.again or attempt == TRIES - 1:
                    raise SearchError(f"{what} cannot be had: {error}") from error
                time.sleep(min(LONGEST_PAUSE, max(error.after, self.pause * 2**attempt)))
        raise AssertionError("unreachable")


def open_search(source: str) -> SearchEngine:
    """What ``--search`` names: ``ddgs``, ``searxng:URL``, ``brave``, ``tavily``, an index file or a folder.

    Raises:
        UserError: no such file or folder, no key in the environment, or a package that is missing.
    """
    if source == "ddgs":
        return WebSearch("DuckDuckGo", _ddgs())
    if source.startswith("searxng:"):
        return WebSearch("SearXNG", searxng(source.removeprefix("searxng:")))
    if source in KEYS:
        key = os.environ.get(KEYS[source], "")
        if not key:
            raise UserError(f"{source} wants a key; set the environment variable {KEYS[source]}")
        return WebSearch(source.title(), brave(key) if source == "brave" else tavily(key))
    from minnow.agent.folder import open_index

    return LocalSearch(open_index(Path(source)))


def searxng(url: str, fetcher: Fetcher | None = None) -> Results:
    """A SearXNG instance at ``url``, whose settings must allow ``format=json``.

    Raises:
        UserError: no address.
    """
    if not re.fullmatch(r"https?://[^\s/]+\S*", url):
        raise UserError(f"{url!r} is no address of SearXNG; write searxng:http://localhost:8080")
    ask = fetcher or Fetcher()

    def results(query: str, k: int) -> list[Found]:
        got = _json(ask, f"{url.rstrip('/')}/search?{urlencode({'q': query, 'format': 'json'})}", {})
        return _found(got, ("results",), "url", "title", "content", k)

    return results


def brave(key: str, fetcher: Fetcher | None = None, url: str = "https://api.search.brave.com") -> Results:
    """Brave's search API."""
    ask = fetcher or Fetcher()

    def results(query: str, k: int) -> list[Found]:
        address = f"{url}/res/v1/web/search?{urlencode({'q': query[:400], 'count': min(k, 20)})}"
        got = _json(ask, address, {"X-Subscription-Token": key})
        return _found(got, ("web", "results"), "url", "title", "description", k)

    return results


def tavily(key: str, fetcher: Fetcher | None = None, url: str = "https://api.tavily.com") -> Results:
    """Tavily's search API."""
    ask = fetcher or Fetcher()

    def results(query: str, k: int) -> list[Found]:
        body = json.dumps({"query": query[:400], "max_results": min(k, 20)}).encode()
        got = _json(ask, f"{url}/search", {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}, body)
        return _found(got, ("results",), "url", "title", "content", k)

    return results


def _ddgs() -> Results:
    try:
        from ddgs import DDGS
        from ddgs.exceptions import DDGSException
    except ImportError as error:
        raise UserError("searching DuckDuckGo needs the package ddgs: pip install 'minnow[search]'") from error

    def results(query: str, k: int) -> list[Found]:
        try:
            rows = DDGS().text(query, max_results=k)
        except DDGSException as error:
            if "No results" in str(error):
                return []
            raise FetchError(f"{error}.", again=True) from error
        return _found({"results": rows}, ("results",), "href", "title", "body", k)

    return results


def _json(fetcher: Fetcher, url: str, headers: Mapping[str, str], data: bytes | None = None) -> Any:
    got = fetcher.ask(url, {"Accept": "application/json", **headers}, data)
    try:
        return json.loads(got.body)
    except (ValueError, RecursionError) as error:
        # A page that asks whether one is human, or one of an overloaded proxy: it may pass.
        raise FetchError("the answer is not JSON.", again=True) from error


def _found(got: Any, path: tuple[str, ...], url: str, title: str, text: str, k: int) -> list[Found]:
    for key in path:
        got = got.get(key, []) if isinstance(got, dict) else []
    rows = [row for row in got if isinstance(row, dict) and row.get(url)] if isinstance(got, list) else []
    return [Found(str(row[url]), _plain(row.get(title)), _plain(row.get(text))) for row in rows[:k]]


def _plain(value: Any) -> str:
    """A title or snippet without mark-up."""
    return " ".join(html.unescape(re.sub(r"</?(?:strong|b|em|i|mark|span)\b[^>]*>", "", str(value or ""))).split())
