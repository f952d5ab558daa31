"""The tantivy index finds what the FTS5 index finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.agent import SearchIndex
from minnow.agent.folder import index_folder, open_index
from minnow.agent.index import TITLE_BONUS
from minnow.agent.tantivy_index import TantivyIndex
from minnow.cli.main import main
from minnow.errors import UserError
from minnow.tasks import PocketWorld

pytest.importorskip("tantivy")


@pytest.fixture(scope="module")
def pages() -> list[tuple[str, str, str]]:
    return [*PocketWorld(5, 1250).pages(), ("é#1", "Ézé-Tarn", "A lake\x00 in the north.")]


@pytest.fixture(scope="module")
def index(pages: list[tuple[str, str, str]], tmp_path_factory: pytest.TempPathFactory) -> TantivyIndex:
    return TantivyIndex.build(iter(pages), tmp_path_factory.mktemp("tantivy") / "pages.index")


def test_it_finds_what_the_other_index_finds(pages: list[tuple[str, str, str]], index: TantivyIndex) -> None:
    other = SearchIndex.build(pages)
    assert len(index) == len(other) == len(pages)
    for identity, title, _ in pages[::17]:
        for each in (index, other):
            assert each.search(title, 1)[0].id == identity and each.search(title, 1)[0].score >= TITLE_BONUS
    assert index.page("nobody") is None and other.page("nobody") is None


def test_words_alone_find_the_page_that_has_them_all(tmp_path: Path) -> None:
    rng = Random(0)
    texts = [" ".join(rng.choices([f"word{n}" for n in range(400)], k=30)) for _ in range(300)]
    pages = [(str(n), "Untitled", text) for n, text in enumerate(texts)]
    for index in (SearchIndex.build(pages), TantivyIndex.build(pages, tmp_path / "x")):
        for place in range(0, 300, 10):
            assert index.search(" ".join(rng.sample(texts[place].split(), 8)), 1)[0].id == str(place)


def test_pages_come_back_as_they_were(pages: list[tuple[str, str, str]], index: TantivyIndex) -> None:
    for page in (pages[3], pages[-1]):
        found = index.page(page[0])
        assert found is not None and (found.id, found.title, found.text) == page
    assert index.search("eze tarn", 1)[0].id == "é#1"


def test_half_a_surrogate_pair_is_no_character(tmp_path: Path) -> None:
    index = TantivyIndex.build([("a\ud800", "Bor\udfff", "Bor lies near the river Elm \ud83d.")], tmp_path / "x")
    (hit,) = index.search("river \ud800 Elm")
    assert index.page("a\ud800") is not None and (hit.id, hit.title) == ("a\ufffd", "Bor\ufffd")


def test_the_longest_title_in_the_query_comes_first(tmp_path: Path) -> None:
    pages = [
        ("a", "River", "About rivers: Velm Osk Velm Osk Velm Osk"),
        ("b", "Velm", "A town."),
        ("c", "Velm Osk", "A person."),
    ]
    index = TantivyIndex.build(pages, tmp_path / "x")
    assert [hit.id for hit in index.search("who was VELM OSK, the person?", 1)] == ["c"]
    assert {hit.id for hit in index.search("is Velm Osk from Velm or by a river?", 2)} == {"c", "a"}
    assert [hit.id for hit in index.search("river", 3)] == ["a"]


@settings(deadline=None, derandomize=True, max_examples=40)
@given(st.text(max_size=30) | st.lists(st.sampled_from(
    ['"', "'", "*", "(", ")", "NEAR(", "AND", "OR", "NOT", "title:", "^", "-", "town", "Tal", " ", ";", "\x00", "\ud800", "é", "+"]),
    max_size=12).map(" ".join))  # fmt: skip
def test_a_query_is_only_words(index: TantivyIndex, query: str) -> None:
    assert all(hit.score > 0 for hit in index.search(query, 3))


def test_threads_search_at_once(pages: list[tuple[str, str, str]], index: TantivyIndex) -> None:
    titles = [title for _, title, _ in pages[:60]]
    expected = [index.search(title) for title in titles]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(index.search, titles)) == expected


def test_bad_pages_and_folders_are_user_errors(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no pages"):
        TantivyIndex.build([], tmp_path / "x")
    with pytest.raises(UserError, match="two pages have the id 'a'"):
        TantivyIndex.build([("a", "x", "y"), ("a", "z", "w")], tmp_path / "x")
    assert list(tmp_path.iterdir()) == []
    TantivyIndex.build([("a", "Velm", "A town.")], tmp_path / "x")
    with pytest.raises(UserError):
        TantivyIndex.build([("b", "x", "y"), ("b", "x", "y")], tmp_path / "x")
    assert TantivyIndex(tmp_path / "x").search("velm")[0].id == "a"  # a failed build keeps what was there
    (tmp_path / "x/meta.json").write_text("{")
    with pytest.raises(UserError, match="damaged or no search index"):
        TantivyIndex(tmp_path / "x")


def test_minnow_index_writes_one_and_search_reads_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes/velm.txt").write_text("Velm is a town on the Osk.")
    assert main(["index", str(tmp_path / "notes"), "--fast"]) == 0
    assert "1 pages" in capsys.readouterr().out
    for found in (open_index(tmp_path / "notes.index"), index_folder(tmp_path / "notes")):
        assert [hit.id for hit in found.search("Which town is on the Osk?")] == ["velm.txt"]
