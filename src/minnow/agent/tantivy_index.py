"""The local index over tantivy (``pip install 'minnow[search]'``): a folder, searched several times faster than FTS5."""

from __future__ import annotations

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

from minnow.agent.index import MAX_TERMS, SMALL, TITLE_BONUS, TITLE_WEIGHT, Hit, outermost, spans, unique, words_of
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, whole_pairs, write_json

_MARK, _FORMAT = "minnow-index.json", 1
_HEAP = (
    128_000_000  # bytes of pages that are held before they are written: with one thread, one segment of most indexes
)


class TantivyIndex:
    """An index over pages, for any thread; ranks as :class:`minnow.agent.SearchIndex` does, by another BM25."""

    def __init__(self, folder: Path) -> None:
        """Open an index that :meth:`build` wrote, for reading.

        Raises:
            UserError: the folder is damaged or something else, or tantivy is not installed.
        """
        self._tantivy = _tantivy()
        try:
            whole = read_json(folder / _MARK) == {"format": _FORMAT}
            index = self._tantivy.Index.open(str(folder))
            self._searcher = index.searcher()
        except (UserError, ValueError, OSError):
            whole = False
        if not whole:
            raise UserError(f"{folder} is damaged or no search index of this version; delete it and build it again")
        self._schema, self._name = index.schema, folder

    @staticmethod
    def here(folder: Path) -> bool:
        """Whether ``folder`` is an index of this kind."""
        return (folder / _MARK).is_file()

    @classmethod
    def build(cls, pages: Iterable[tuple[str, str, str]], folder: Path) -> TantivyIndex:
        """Index ``(id, title, text)`` pages into ``folder``, which appears whole or not at all.

        Raises:
            UserError: no pages, two pages with one id, a folder that cannot be written, or tantivy is not installed.
        """
        tantivy = _tantivy()
        with whole_folder(folder) as temporary:
            index = tantivy.Index(_schema(tantivy), str(temporary))
            index.register_tokenizer("words", tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.whitespace()).build())
            # Its end, good or bad, is also that of its threads.
            with index.writer(_HEAP, num_threads=1) as writer:
                for identity, title, text in unique(pages):
                    page = tantivy.Document()
                    page.add_text("id", identity)
                    page.add_text("key", " ".join(words_of(title)))
                    page.add_text("title", " ".join(words_of(title)))
                    page.add_text("text", " ".join(words_of(text)))
                    page.add_bytes("page", json.dumps([identity, title, text]).encode())
                    writer.add_document(page)
            write_json(temporary / _MARK, {"format": _FORMAT})
        return cls(folder)

    def __len__(self) -> int:
        return self._searcher.num_docs

    def page(self, identity: str) -> Hit | None:
        """The page with this id; None where there is none."""
        found = self._found(self._term("id", whole_pairs(identity)), 1)
        return found[0] if found else None

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """As :meth:`minnow.agent.SearchIndex.search`."""
        words = words_of(query)[:MAX_TERMS]
        if not words or k < 1:
            return []
        rare = self._rare(words)
        kept = [word for word in dict.fromkeys(words) if word in rare] or words[:1]
        pairs = dict.fromkeys(pair for pair in pairwise(words) if rare.issuperset(pair))
        weigh, titles = self._tantivy.Query.boost_query, spans(words, rare)
        wanted = [weigh(self._term("title", word), TITLE_WEIGHT) for word in kept]
        wanted += [self._term("text", word) for word in kept]
        wanted += [weigh(self._pair("title", pair), TITLE_WEIGHT) for pair in pairs]
        wanted += [self._pair("text", pair) for pair in pairs]
        wanted += [
            self._tantivy.Query.const_score_query(self._term("key", key), TITLE_BONUS * titles[key])
            for key in outermost(key for key in titles if self._searcher.doc_freq("key", key))
        ]
        return self._found(
            self._tantivy.Query.boolean_query([(self._tantivy.Occur.Should, each) for each in wanted]), k
        )

    def _rare(self, words: list[str]) -> set[str]:
        """The words worth looking up: in a large index, none that more than half the pages hold."""
        distinct = set(words)
        if len(self) <= SMALL:
            return distinct
        return {word for word in distinct if self._searcher.doc_freq("text", word) * 2 <= len(self)}

    def _term(self, field: str, value: str) -> Any:
        return self._tantivy.Query.term_query(self._schema, field, value)

    def _pair(self, field: str, pair: tuple[str, str]) -> Any:
        return self._tantivy.Query.phrase_query(self._schema, field, list(pair))

    def _found(self, query: Any, k: int) -> list[Hit]:
        try:
            found = self._searcher.search(query, k, count=False).hits
            rows = [(score, json.loads(self._searcher.doc(at).get_first("page"))) for score, at in found]
        except (ValueError, OSError) as error:
            raise UserError(f"{self._name} cannot be read ({error}); build it again") from error
        return [Hit(identity, title, text, score) for score, (identity, title, text) in rows]


def _tantivy() -> Any:
    try:
        import tantivy
    except ImportError as error:
        raise UserError("this kind of index needs the package tantivy: pip install 'minnow[search]'") from error
    return tantivy


def _schema(tantivy: Any) -> Any:
    builder = tantivy.SchemaBuilder()
    for field in ("id", "key"):
        builder.add_text_field(field, tokenizer_name="raw", index_option="basic")
    for field in ("title", "text"):
        builder.add_text_field(field, tokenizer_name="words")
    builder.add_bytes_field("page", stored=True)
    return builder.build()
