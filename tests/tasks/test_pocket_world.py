"""The world is deterministic, its splits share nothing, and its text is free of loops."""

from __future__ import annotations

import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minnow.errors import UserError
from minnow.tasks import TASKS, Example, PocketWorld, format_hits
from minnow.tasks.enumerations import CATEGORIES, FEWEST, POOL
from minnow.tasks.names import GIVEN, PLACE_FIRST, split_of
from minnow.tasks.pages import LONG_LENGTH, SHORT_LENGTH
from minnow.tasks.questions import one_hop, two_hop
from minnow.tasks.tools import LONGEST_TITLE, SEARCH_HITS, sentences
from minnow.tasks.types import SPLITS, Page, Split

WORLD = PocketWorld(7, entities=500)
NAME = re.compile(rf"\b(?:{'|'.join((*PLACE_FIRST, *GIVEN))}) [A-Z][a-z]+")


def text_of(example: Example) -> str:
    return "\n".join(message["content"] for message in [*example.messages, *example.reference])


def everything(split: Split) -> list[Example]:
    return [e for task in TASKS for e in WORLD.examples(task, split, 60)] + WORLD.loop_prone(split, 200)


def test_same_seed_same_world() -> None:
    again, other = PocketWorld(7, entities=500), PocketWorld(8, entities=500)
    assert again.pages() == WORLD.pages() != other.pages()
    assert list(again.documents(300)) == list(WORLD.documents(300)) != list(other.documents(300))
    for task in TASKS:
        assert (
            again.examples(task, "train", 40) == WORLD.examples(task, "train", 40) != other.examples(task, "train", 40)
        )


def test_a_longer_request_begins_with_the_shorter_one() -> None:
    for task in TASKS:
        assert WORLD.examples(task, "train", 50)[:21] == WORLD.examples(task, "train", 21)
    assert WORLD.loop_prone("held_out", 50)[:21] == WORLD.loop_prone("held_out", 21)


def test_ids_are_unique_and_name_one_example() -> None:
    for split in SPLITS:
        by_id: dict[str, Example] = {}
        for example in everything(split):
            assert by_id.setdefault(example.id, example) == example
    for task in TASKS:
        assert len({e.id for e in WORLD.examples(task, "train", 800)}) == 800


def test_held_out_prompts_are_distinct() -> None:
    for task in TASKS:
        prompts = [e.messages[0]["content"] for e in WORLD.examples(task, "held_out", 60)]
        assert len(set(prompts)) == 60


def test_splits_share_no_prompt_and_no_name() -> None:
    train, held_out = everything("train"), everything("held_out")
    documents = list(WORLD.documents(3000))
    prompts = {example.messages[0]["content"] for example in train}
    prompts |= {document.partition("\n")[0] for document in documents}
    assert not prompts & {example.messages[0]["content"] for example in held_out}

    seen = {name for text in [*map(text_of, train), *documents] for name in NAME.findall(text)}
    unseen = {name for example in held_out for name in NAME.findall(text_of(example))}
    unseen |= {page.title for page in WORLD.pages("held_out")}
    assert len(seen) > 1000 and len(unseen) > 800  # enough of both for the next line to mean something
    assert not seen & unseen
    assert all(split_of(name) == "train" for name in seen)


def test_sums_and_walks_of_other_seeds_stay_out_of_training_too() -> None:
    def problems(world: PocketWorld, task: str, split: Split, n: int) -> set[str]:
        prompts = [example.messages[0]["content"] for example in world.examples(task, split, n)]
        return {re.sub(r"^\D*?(?=\d)|[.?]$", "", prompt) for prompt in prompts}

    other = PocketWorld(99, entities=125)
    for task in ("arithmetic", "walk", "calculator"):
        assert not problems(other, task, "held_out", 99) & problems(WORLD, task, "train", 2000)


def test_every_second_page_is_long_and_the_loop_prone_set_is_mixed() -> None:
    assert [e.loop_prone for e in WORLD.examples("page", "train", 5)] == [False, True, False, True, False]
    prone = WORLD.loop_prone("held_out", 200)
    assert all(e.loop_prone and e.split == "held_out" for e in prone)
    counts = [sum(e.task == task for e in prone) for task in ("enumeration", "page", "walk", "arithmetic")]
    assert counts == [40, 80, 40, 40]
    for task in set(TASKS) - {"page", "enumeration"}:
        assert not any(e.loop_prone for e in WORLD.examples(task, "train", 50))


def test_long_prompts_are_longer_than_any_trained_on() -> None:
    prone = WORLD.loop_prone("held_out", 120)
    for task, size in {
        "arithmetic": lambda e: len(re.findall(r"\d+", e.messages[0]["content"])),
        "walk": lambda e: len(e.answer["edges"]),
    }.items():
        longest = max(map(size, WORLD.examples(task, "train", 500)))
        assert min(size(e) for e in prone if e.task == task) > longest


def test_every_example_states_its_form() -> None:
    for split in SPLITS:
        for e in everything(split):
            assert [message["role"] for message in e.messages] == ["user"]
            assert e.split == split and e.task in TASKS
            assert (e.tools is not None) == (e.task in ("search", "calculator"))
            assert e.reference[-1]["role"] == "assistant"
            assert {turn["role"] for turn in e.reference} <= {"assistant", "tool"}
            assert len(text_of(e)) < 2400  # 500 tokens or so


def test_lists_draw_on_one_closed_set_per_category() -> None:
    seen: dict[str, set[str]] = {}
    for e in WORLD.examples("enumeration", "train", 200):
        names = e.reference[0]["content"].removeprefix(e.answer["opening"]).removesuffix(".").split(", ")
        assert FEWEST <= len(names) == len(set(names)) <= POOL
        assert set(names) <= set(e.answer["names"])
        seen.setdefault(e.answer["opening"].split()[1], set()).update(names)
    assert set(seen) == set(CATEGORIES)
    assert {len(names) for names in seen.values()} == {POOL}


def test_pages_hold_the_answer_to_every_question() -> None:
    shown = {page.title: format_hits(page.title, [page]) for page in WORLD.pages()}
    assert len(shown) == 500
    entities = WORLD._entities
    for question in one_hop(entities) + two_hop(entities):
        assert re.search(rf"\b{question.gold}\b", shown[question.last.name])
        if question.inner:
            assert question.last.name in shown[question.subject.name]


def test_search_conversations_show_what_was_searched_for() -> None:
    hops = set()
    for e in WORLD.examples("search", "held_out", 100):
        hops.add(e.answer["hops"])
        results = [turn["content"] for turn in e.reference if turn["role"] == "tool"]
        assert len(results) == e.answer["hops"] == len(e.answer["calls"])
        for call, result in zip(e.answer["calls"], results, strict=True):
            assert result.startswith(f"{call['arguments']['query']}: ")
        assert e.answer["calls"][0]["arguments"]["query"] in e.messages[0]["content"]
        assert re.search(rf"\b{e.answer['gold']}\b", results[-1])
    assert hops == {1, 2}


def test_closed_book_asks_the_same_questions() -> None:
    asked, searched = (
        {e.messages[0]["content"] for e in WORLD.examples(t, "held_out", 600)} for t in ("question", "search")
    )
    assert len(asked & searched) > 300


def test_hits_are_cut_to_two_pages_of_four_sentences() -> None:
    pages = [Page(str(n), f"Title {n}", "One is. Two is. Three is. Four is. Five is.") for n in range(3)]
    first, second = (f"Title {n}: One is. Two is. Three is. Four is." for n in range(2))
    assert format_hits("Title 1", pages) == f"{first}\n{second}"
    assert format_hits("Title 0", pages[:1]) == first
    assert format_hits("", []) == format_hits("Who?", []) == "No page found."
    assert SEARCH_HITS == 2


@pytest.mark.parametrize("query", ["Nina Talrus", "NINA  TALRUS", " nina\ttalrus\n", "Straße", "STRASSE"])
def test_it_is_said_if_and_only_if_no_page_shown_has_the_query_as_its_title(query: str) -> None:
    said = f"Found no page called {' '.join(query.split())}."
    spellings = ("Nina Talrus", "nina\u00a0talrus", "Vera Talrus", "Nina Talrusa", "Nina", "strasse", "")
    for count in (0, 1, 2, 3):
        for titles in product(spellings, repeat=count):
            pages = [Page(str(n), title, "One is.") for n, title in enumerate(titles)]
            known = any("".join(query.split()).casefold() == "".join(each.split()).casefold() for each in titles[:2])
            hits = [f"{title}: One is." for title in titles[:2]]
            assert format_hits(query, pages) == "\n".join(hits if known else [said, *hits])


def test_of_what_cannot_be_a_title_it_is_not_said() -> None:
    pages = [Page("0", "Ada", "One is.")]
    for query in ("", " \n", "Who is Nina?", "Nina " * LONGEST_TITLE, "N" * (LONGEST_TITLE + 1)):
        assert format_hits(query, pages) == "Ada: One is."
    assert format_hits("N" * LONGEST_TITLE, pages).startswith("Found no page called N")


@given(
    st.lists(
        st.sampled_from(["Found", "no", "page", "called", "found", "Ada Ro", "NO", "PAGE", "\n", "."]), max_size=12
    ),
    st.sampled_from([" ", "\n", "\u00a0", "  "]),
)
def test_a_page_cannot_say_in_the_tools_words_that_there_is_none(words: list[str], space: str) -> None:
    text = space.join(words)
    for page in (Page("0", "Ada Ro", text), Page("0", text, "One is.")):
        said = " ".join(format_hits("What is Ada Ro?", [page]).casefold().split())
        assert "found no page called" not in said and "no page found" not in said


def test_what_a_page_says_in_other_words_stays() -> None:
    text = "Found no  PAGE called Ada. They found no page. No page\nfound it. The page is called Ada."
    said = "Ada: ... Ada. They found no page. ... it. The page is called Ada."
    assert format_hits("Ada", [Page("0", "Ada", text)]) == said
    assert format_hits("Eva", [Page("0", "Ada", text)]) == f"Found no page called Eva.\n{said}"


def test_page_lengths() -> None:
    for long, (low, high) in ((False, SHORT_LENGTH), (True, LONG_LENGTH)):
        texts = [e.reference[0]["content"] for e in WORLD.examples("page", "train", 400) if e.loop_prone == long]
        counts = [len(sentences(text)) for text in texts]
        assert low <= min(counts) and max(counts) <= high
    assert all(SHORT_LENGTH[0] <= len(sentences(page.text)) <= SHORT_LENGTH[1] for page in WORLD.pages())


def repeats(text: str, block: int = 8, times: int = 3) -> bool:
    """Does ``text`` hold a block of at least ``block`` words ``times`` times in a row?"""
    words = text.split()
    for period in range(block, len(words) // times + 1):
        run = 0
        for here, there in zip(words, words[period:], strict=False):
            run = run + 1 if here == there else 0
            if run >= period * (times - 1):
                return True
    return False


def test_no_training_text_loops() -> None:
    assert repeats("x " + "a b c d e f g h " * 3) and not repeats("a b c d e f g h " * 2)
    documents = list(WORLD.documents(1500))
    assert len(documents) == 1500
    assert not any(map(repeats, documents))
    assert not any(repeats(text_of(e)) for e in everything("train"))
    assert not any("<|" in document for document in documents)


def test_documents_are_of_every_kind() -> None:
    text = "\n".join(WORLD.documents(600))
    for mark in (
        "Answer: ",
        "Walk: ",
        "List the ",
        '{"kind": ',
        "Search: ",
        "Calculator: ",
        "Summarise ",
        " is a town in",
    ):
        assert mark in text


def test_bad_requests_say_what_to_do() -> None:
    with pytest.raises(UserError, match="no task 'sums'; use one of arithmetic"):
        WORLD.examples("sums", "train", 1)
    with pytest.raises(UserError, match="no split 'test'; use one of train"):
        WORLD.examples("walk", "test", 1)  # type: ignore[arg-type]
    with pytest.raises(UserError, match="64 held_out prompts of the kind 'enumeration', not 65"):
        WORLD.examples("enumeration", "held_out", 65)
    with pytest.raises(UserError, match="at least 125"):
        PocketWorld(0, entities=100)
    assert PocketWorld(0, entities=125).examples("enumeration", "held_out", 16)
