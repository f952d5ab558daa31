"""Search engines against a server on this machine that behaves badly where it is told to, and pages that fit a context."""

from __future__ import annotations

import gzip
import http.server
import json
import lzma
import sys
import threading
import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from minnow.agent import SearchIndex
from minnow.agent.fetch import Fetcher, FetchLimits
from minnow.agent.folder import index_folder, open_index
from minnow.agent.search import (
    Found,
    LocalSearch,
    SearchError,
    WebSearch,
    brave,
    open_search,
    searxng,
    tavily,
)
from minnow.agent.tools import call_tool
from minnow.agent.web_tools import web_tools
from minnow.data.calls import Call
from minnow.errors import UserError

ROWS = [
    {"url": f"http://a/{n}", "title": f"<b>T{n}</b> &amp; co", "content": "x", "description": "x"} for n in range(9)
]
Answer = tuple[int, str, bytes]
JSON = "application/json"
GOOD: Answer = (200, JSON, json.dumps({"results": ROWS, "web": {"results": ROWS}}).encode())


@contextmanager
def engine(answers: list[Answer]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives ``answers`` in turn, the last for ever, and what it was asked."""
    asked: list[dict[str, Any]] = []
    left = list(answers)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            asked.append({"path": self.path, "headers": dict(self.headers), "body": body})
            status, kind, text = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.end_headers()
            self.wfile.write(text)

        do_POST = do_GET

        def log_message(self, *_: Any) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_each_engine_is_asked_in_its_own_way() -> None:
    with engine([GOOD]) as (url, asked):
        for results in (searxng(url), brave("key", url=url), tavily("key", url=url)):
            found = WebSearch("x", results).search("Größe & co", 3)
            assert found == [Found(f"http://a/{n}", f"T{n} & co", "x") for n in range(3)]
    one, two, three = asked
    assert one["path"] == "/search?q=Gr%C3%B6%C3%9Fe+%26+co&format=json"
    assert two["path"].startswith("/res/v1/web/search?q=Gr") and two["headers"]["X-Subscription-Token"] == "key"
    assert json.loads(three["body"]) == {"query": "Größe & co", "max_results": 3}
    assert three["headers"]["Authorization"] == "Bearer key"


@pytest.mark.parametrize(
    "fault",
    [
        (429, JSON, b"{}"),
        (503, JSON, b""),
        (200, "text/html", b"<html>Are you human?</html>"),
        (200, JSON, b"[" * 99999),
    ],
)
def test_a_fault_that_passes_is_waited_out_and_one_that_stays_is_told_to_the_model(fault: Answer) -> None:
    with engine([fault, fault, GOOD]) as (url, asked):
        assert len(WebSearch("SearXNG", searxng(url), pause=0.01).search("x", 5)) == 5 and len(asked) == 3
    with engine([fault]) as (url, asked):
        search, _ = web_tools(WebSearch("SearXNG", searxng(url), pause=0.01))
        text, worked = call_tool([search], Call("web_search", {"query": "x"}), 999)
        assert not worked and text.startswith("error: SearXNG cannot be had: ") and len(asked) == 3


@pytest.mark.parametrize("fault", [(401, JSON, b"{}"), (404, "text/html", b"no"), (302, JSON, b"")])
def test_what_no_second_try_mends_is_tried_once(fault: Answer) -> None:
    with engine([fault]) as (url, asked):
        with pytest.raises(SearchError, match=f"HTTP {fault[0]}"):
            WebSearch("Brave", brave("key", url=url), pause=0.01).search("x", 5)
        assert len(asked) == 1


def test_an_engine_that_is_down_or_silent_is_a_tool_error() -> None:
    with pytest.raises(SearchError, match="gave no answer"):
        WebSearch("SearXNG", searxng("http://127.0.0.1:9"), pause=0.01).search("x", 5)


@pytest.mark.parametrize(
    "body", [b"{}", b"[]", b"null", b'{"results": null}', b'{"results": {}}', b'{"results": [3, {}]}']
)
def test_an_empty_or_odd_answer_is_no_result(body: bytes) -> None:
    with engine([(200, JSON, body)]) as (url, _):
        search, _ = web_tools(WebSearch("SearXNG", searxng(url)))
        assert call_tool([search], Call("web_search", {"query": "x"}), 999) == ("No page found; try other words.", True)


def test_duckduckgo_through_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    package, errors = types.ModuleType("ddgs"), types.ModuleType("ddgs.exceptions")
    errors.DDGSException = type("DDGSException", (Exception,), {})  # type: ignore[attr-defined]
    replies: list[Any] = [errors.DDGSException("Ratelimit"), [{"href": "http://a", "title": "A", "body": "b"}]]

    class DDGS:
        def text(self, query: str, max_results: int) -> list[dict[str, str]]:
            reply = replies.pop(0)
            if isinstance(reply, Exception):
                raise reply
            return reply

    package.DDGS = DDGS  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "ddgs", package)
    monkeypatch.setitem(sys.modules, "ddgs.exceptions", errors)
    assert open_search("ddgs").search("x", 5) == [Found("http://a", "A", "b")]
    replies.append(errors.DDGSException("No results found."))
    assert open_search("ddgs").search("x", 5) == []
    monkeypatch.setitem(sys.modules, "ddgs", None)
    with pytest.raises(UserError, match="pip install"):
        open_search("ddgs")


def test_what_cannot_be_searched_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BRAVE_API_KEY", raising=False)
    for source, message in (
        ("brave", "BRAVE_API_KEY"),
        ("searxng:localhost", "no address"),
        (str(tmp_path / "none"), "there is no folder"),
        (str(tmp_path), "holds no file"),
    ):
        with pytest.raises(UserError, match=message):
            open_search(source)


def test_a_folder_of_every_kind_is_indexed(tmp_path: Path) -> None:
    (tmp_path / "velm.md").write_text("# About\nVelm lies on the Osk.")
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "osk.html").write_bytes("<title>Osk</title><p>Größe: 212 km".encode("cp1252"))
    (tmp_path / "empty.txt").write_text(" ")
    (tmp_path / "photo.png").write_bytes(b"\x89PNG")
    (tmp_path / "odd.txt").write_bytes(bytes(99))
    lines = [{"title": "Tarn", "text": "A town by a lake."}, {"id": 7, "context": "Dana Pryl was born in Tarn."}]
    (tmp_path / "rows.jsonl.xz").write_bytes(lzma.compress("\n".join(map(json.dumps, lines)).encode()))
    skipped: list[str] = []
    index = index_folder(tmp_path, tmp_path / "out.db", skipped)
    assert len(index) == 4 and sorted(each.rpartition("/")[2][:5] for each in skipped) == ["empty", "odd.t"]
    assert [index.search(word, 1)[0].id for word in ("Velm", "Größe", "lake", "Pryl")] == [
        "velm.md", "deep/osk.html", "rows.jsonl.xz#1", "7",
    ]  # fmt: skip
    assert len(open_index(tmp_path / "out.db")) == 4
    (tmp_path / "rows.jsonl.xz").write_bytes(lzma.compress(b'{"text": "x"}\n{"no": 1}'))
    with pytest.raises(UserError, match="line 2 of .* has no text"):
        index_folder(tmp_path)


def test_the_end_of_a_name_says_what_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "ROWS.JSONL").write_text('{"title": "Tarn", "text": "A town by a lake."}\n{"text": "Velm."}\n')
    (tmp_path / "about.jsonl.txt").write_text("What the lines mean.")
    index = index_folder(tmp_path)
    assert len(index) == 3 and index.search("lines mean", 1)[0].id == "about.jsonl.txt"


@pytest.mark.parametrize("kept", [0.5, 0.0])
def test_a_damaged_file_of_lines_is_a_sentence(tmp_path: Path, kept: float) -> None:
    whole = gzip.compress(b'{"text": "a town"}\n' * 999)
    (tmp_path / "rows.jsonl.gz").write_bytes(whole[: int(kept * len(whole))] or b"no gzip at all")
    with pytest.raises(UserError, match="rows.jsonl.gz is damaged or not compressed as its name says"):
        index_folder(tmp_path)


def test_pages_and_results_fit_a_small_context() -> None:
    filler = "The town has a market and a church. Many visitors come every year. "
    long = filler * 300 + "The mayor is Dana Pryl. " + filler * 300
    pages = [
        ("velm.md", "Velm", long),
        *((f"{n}.md", f"Other {n}", f"A mayor of town {n}. " + filler * 9) for n in range(30)),
    ]
    tools = web_tools(LocalSearch(SearchIndex.build(pages)))
    text, worked = call_tool(tools, Call("web_search", {"query": "Velm mayor"}), 10_000)
    assert worked and text.startswith("1. Velm\nvelm.md\n") and "Dana Pryl" in text and len(text) < 5 * 400
    text, worked = call_tool(tools, Call("open_page", {"url": "velm.md", "looking_for": "mayor"}), 10_000)
    assert worked and "Dana Pryl" in text and len(text) < 1800 and f"({len(long)} characters" in text
    start, end = text.rpartition("[")[2].partition("]")[0].split("–")
    assert text.rpartition("] ")[2] == long[int(start) : int(end)].strip()
    assert call_tool(tools, Call("open_page", {"url": "velm.md"}), 10_000)[0].splitlines()[2].startswith("[0–")
    text, worked = call_tool(tools, Call("open_page", {"url": "gone"}), 10_000)
    assert not worked and "there is no page gone" in text


def test_a_page_of_the_web_is_fetched_safely(monkeypatch: pytest.MonkeyPatch) -> None:
    engine_ = WebSearch("x", lambda query, k: [], Fetcher(FetchLimits(seconds=2)), pause=0.01)
    _, open_page = web_tools(engine_)
    text, worked = call_tool([open_page], Call("open_page", {"url": "http://169.254.169.254/"}), 999)
    assert not worked and "not an address of the public internet" in text
