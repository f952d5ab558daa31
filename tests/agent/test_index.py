from __future__ import annotations

import math
import random
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minnow.agent import SearchIndex
from minnow.agent.index import TITLE_BONUS, TITLE_WEIGHT
from minnow.errors import UserError

SYLLABLES = ["ba", "ko", "ri", "tu", "mel", "dor", "van", "is", "qua", "len"]
COMMON = ["the", "of", "and", "is", "a", "in", "by", "river", "town", "which", "lies", "near", "it", "has", "people"]


def name(source: random.Random) -> str:
    return "".join(source.choice(SYLLABLES) for _ in range(3)).title()


def make_pages(count: int, words: int, seed: int = 0) -> list[tuple[str, str, str]]:
    source = random.Random(seed)
    pages = []
    vocabulary = COMMON * 60 + [name(source) for _ in range(600)]
    for number in range(count):
        title = f"{name(source)} {name(source)}"
        pages.append((f"p{number}", title, f"{title} {' '.join(source.choices(vocabulary, k=words))}"))
    return pages


def bm25(pages: list[tuple[str, str, str]], terms: list[list[str]]) -> list[float]:
    """BM25 as SQLite documents it (fts5.html, section 4.3.1), over lists of words, by brute force."""

    def count(words: list[str], term: list[str]) -> int:
        return sum(words[i : i + len(term)] == term for i in range(len(words)))

    split = [(title.lower().split(), text.lower().split()) for _, title, text in pages]
    mean = sum(len(title) + len(text) for title, text in split) / len(split)
    scores = [0.0] * len(pages)
    for term in terms:
        counts = [(count(title, term), count(text, term)) for title, text in split]
        holding = sum(any(pair) for pair in counts)
        idf = max(math.log((len(pages) - holding + 0.5) / (holding + 0.5)), 1e-6)
        for place, (in_title, in_text) in enumerate(counts):
            tf = TITLE_WEIGHT * in_title + in_text
            length = len(split[place][0]) + len(split[place][1])
            scores[place] += idf * tf * 2.2 / (tf + 1.2 * (0.25 + 0.75 * length / mean))
    return scores


@pytest.mark.parametrize("small", [0, 1000])
def test_scores_equal_brute_force_bm25(small: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without the shortcut for words that most pages hold."""
    monkeypatch.setattr("minnow.agent.index.SMALL", small)
    pages = make_pages(60, 40)
    index = SearchIndex.build(pages)
    source = random.Random(1)
    for _ in range(30):
        words = [word.lower() for word in source.choice(pages)[2].split()]
        start = source.randrange(2, len(words) - 4)
        query = words[start : start + 4]
        if len(set(query)) < 4:
            continue
        terms = [[word] for word in query]
        holding = {word: sum(word in text.lower().split() for _, _, text in pages) for word in query}
        terms += [[a, b] for a, b in pairwise(query) if small or max(holding[a], holding[b]) <= 30]
        wanted = bm25(pages, terms)
        # The titles consist of rare words alone, and none is in these queries, so no bonus applies.
        for hit in index.search(" ".join(query), 5):
            assert hit.score == pytest.approx(wanted[int(hit.id[1:])], abs=1e-4)
            assert sum(score > hit.score + 1e-4 for score in wanted) < 5


def test_the_page_named_in_the_query_comes_first() -> None:
    pages = [
        ("a", "River", "About rivers: Velm Osk Velm Osk Velm Osk"),
        ("b", "Velm", "A town."),
        ("c", "Velm Osk", "A person."),
        ("d", "The Velm Osk affair", "Velm Osk. Velm Osk."),
        ("e", "Ézé-Tarn", "A lake."),
    ] + [(f"x{i}", f"Nothing {i}", "the river and the town") for i in range(20)]
    index = SearchIndex.build(pages)
    assert index.search("velm osk", 1)[0].id == "c"
    assert index.search("Velm", 1)[0].id == "b"
    assert index.search("who was VELM OSK, the person?", 2)[0].id == "c"
    # The title "Velm" inside "Velm Osk" earns nothing of its own.
    assert [hit.id for hit in index.search("velm osk", 3)] == ["c", "d", "a"]
    assert {hit.id for hit in index.search("is Velm Osk from Velm or by a river?", 2)} == {"c", "a"}
    assert index.search("eze tarn", 1)[0].id == "e"
    hit = index.search("river", 1)[0]
    assert (hit.id, hit.title, hit.text) == ("a", *pages[0][1:]) and TITLE_BONUS <= hit.score < 2 * TITLE_BONUS


def test_every_title_finds_its_page_and_a_file_answers_as_memory_does(tmp_path: Path) -> None:
    pages = make_pages(400, 30)
    pages = list({title: (number, title, text) for number, title, text in pages}.values())
    memory = SearchIndex.build(pages)
    with SearchIndex.build(iter(pages), tmp_path / "folder" / "a b?#.db") as file:
        assert len(memory) == len(file) == len(pages)
        for number, title, _ in pages[::7]:
            question = f"Which people lie near {title}?"
            assert memory.search(title, 3) == file.search(title, 3)
            assert memory.search(title, 1)[0].id == memory.search(question, 1)[0].id == number
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["a b?#.db"]


def test_threads_search_at_once(tmp_path: Path) -> None:
    pages = make_pages(60, 40)
    titles = [title for _, title, _ in pages]
    for index in (SearchIndex.build(pages), SearchIndex.build(pages, tmp_path / "pages")):
        expected = [index.search(title) for title in titles]
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(index.search, titles)) == expected


def test_ties_come_in_the_order_of_indexing() -> None:
    index = SearchIndex.build((f"z{9 - i}", "Same", "same words") for i in range(9))
    assert [hit.id for hit in index.search("same", 4)] == ["z9", "z8", "z7", "z6"]
    assert [hit.id for hit in index.search("words", 4)] == ["z9", "z8", "z7", "z6"]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(st.text(max_size=30) | st.lists(st.sampled_from(
    ['"', "'", "*", "(", ")", "NEAR(", "AND", "OR", "NOT", "title:", "^", "-", "{a}", "Osk", " ", ";", "--", "\x00", "\ud800", "é", "+"]),
    max_size=12).map("".join))  # fmt: skip
def test_a_query_is_only_words(index: SearchIndex, query: str) -> None:
    for hit in index.search(query, 3):
        assert hit.score > 0


def test_search_syntax_has_no_effect(index: SearchIndex) -> None:
    assert index.search("osk NOT velm", 5) == index.search("osk not velm", 5)
    assert {hit.id for hit in index.search('osk" OR title:"tarn', 5)} >= {"p2", "p5"}
    assert index.search("osk*", 1)[0].id == "p2" and index.search("os*", 5) == []
    assert index.search("", 5) == index.search("?!", 5) == index.search("osk", 0) == []
    assert index.search("unheardof", 5) == []


def test_twenty_thousand_pages_are_indexed_in_two_seconds() -> None:
    pages = make_pages(20_000, 60)
    start = time.process_time()
    index = SearchIndex.build(pages)
    assert time.process_time() - start < 2.0
    assert index.search(pages[12_345][1], 1)[0].title == pages[12_345][1]


def test_half_a_surrogate_pair_is_no_character(tmp_path: Path) -> None:
    index = SearchIndex.build([("a\ud800", "Bor\udfff", "Bor lies near the river Elm \ud83d.")], tmp_path / "pages.db")
    (hit,) = index.search("river \ud800 Elm")
    page = index.page("a\ud800")
    assert page is not None and hit.id == page.id == "a\ufffd" and page.title == "Bor\ufffd" and "\ufffd." in page.text


def test_bad_pages_and_files_are_user_errors(tmp_path: Path) -> None:
    path = tmp_path / "pages.db"
    with pytest.raises(UserError, match="no pages"):
        SearchIndex.build([], path)
    with pytest.raises(UserError, match="two pages have the id 'a'"):
        SearchIndex.build([("a", "x", "y"), ("a", "z", "w")], path)
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UserError, match="no search index at"):
        SearchIndex.open(path)
    path.write_text("not a database, but long enough to look at " * 50)
    with pytest.raises(UserError, match="damaged or no search index"):
        SearchIndex.open(path)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="damaged or no search index"):
        SearchIndex.open(path)
    with pytest.raises(UserError, match="could not write"):
        SearchIndex.build(make_pages(3, 5), tmp_path)


def test_a_truncated_or_overwritten_index_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "pages.db"
    SearchIndex.build(make_pages(300, 40), path).close()
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="build it again"):
        SearchIndex.open(path)
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(UserError, match="build it again"):
        SearchIndex.open(path)


def test_an_index_damaged_while_open_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "pages.db"
    index = SearchIndex.build(make_pages(6000, 60), path)  # larger than SQLite's cache
    whole = path.read_bytes()
    path.write_bytes(whole[:4096] + b"\xff" * (len(whole) - 4096))
    with pytest.raises(UserError, match="build it again"):
        for word in COMMON:
            index.search(word, 3)


def test_a_failed_build_keeps_the_previous_index(tmp_path: Path) -> None:
    path = tmp_path / "pages.db"
    SearchIndex.build([("a", "Velm", "town")], path).close()
    with pytest.raises(UserError):
        SearchIndex.build([("b", "x", "y"), ("b", "x", "y")], path)
    assert SearchIndex.open(path).search("velm", 1)[0].id == "a"
