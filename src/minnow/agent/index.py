"""Full-text search over pages in SQLite's FTS5: nothing to install, in memory or in one file."""

from __future__ import annotations

import re
import sqlite3
import threading
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self

from minnow.errors import UserError
from minnow.files import whole_file, whole_pairs

TITLE_WEIGHT = 8.0
"""What a word in a title counts beside a word in the text, in BM25."""
TITLE_BONUS = 1000.0
"""Added for every word of a title that the query spells out whole; more than BM25 can give, so such pages come first."""
MAX_TERMS = 24
SMALL = 1000
"""Up to so many pages every word of a query is looked up; beyond, words that most pages hold are left out."""
MOST_MATCHES = 20_000
"""How many pages the words looked up may hold in all, the rarest first: what a search costs grows with them."""

_BEYOND_ASCII = re.compile(r"[^\x00-\x7f]")
_APPLICATION, _FORMAT = 0x4D4E4E57, 2  # "MNNW" in the file's header tells our files from other SQLite files
_SCHEMA = """
CREATE TABLE page(number INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, title TEXT NOT NULL, text TEXT NOT NULL,
                  key TEXT NOT NULL);
CREATE VIRTUAL TABLE words USING fts5(title, text, content='page', content_rowid='number',
                                      tokenize='unicode61 remove_diacritics 2');
CREATE TABLE frequency(term TEXT PRIMARY KEY, pages INTEGER NOT NULL) WITHOUT ROWID;
CREATE VIRTUAL TABLE temp.vocabulary USING fts5vocab(main, words, 'row');
"""


@dataclass(frozen=True)
class Hit:
    """A page that was found; a higher score is a better match."""

    id: str
    title: str
    text: str
    score: float


class PageIndex(Protocol):
    """An index over pages, whatever it is kept in."""

    def __len__(self) -> int: ...

    def page(self, identity: str) -> Hit | None:
        """The page with this id; None where there is none."""
        ...

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The ``k`` best pages, best first."""
        ...


class SearchIndex:
    """An index over pages, for any thread; make one with :meth:`build` or :meth:`open`."""

    def __init__(self, connection: sqlite3.Connection, name: str) -> None:
        self._connection, self._name, self._taken = connection, name, threading.Lock()
        self._pages: int = self._run("SELECT count(*) FROM page")[0][0]

    @classmethod
    def build(cls, pages: Iterable[tuple[str, str, str]], path: Path | None = None) -> SearchIndex:
        """Index ``(id, title, text)`` pages, in memory or into the file ``path`` (which appears whole or not at all).

        Raises:
            UserError: no pages, two pages with one id, or a file that cannot be written.
        """
        if path is None:
            connection = sqlite3.connect(":memory:", check_same_thread=False)
            _fill(connection, pages)
            return cls(connection, "the search index in memory")
        with whole_file(path) as temporary:
            try:
                connection = sqlite3.connect(temporary)
                try:
                    connection.execute("PRAGMA journal_mode = OFF")  # the file is private until it is renamed
                    _fill(connection, pages)
                finally:
                    connection.close()
            except sqlite3.Error as error:
                raise UserError(
                    f"could not write the search index {path}: {error}; free some space or choose another folder"
                ) from error
        return cls.open(path)

    @classmethod
    def open(cls, path: Path) -> SearchIndex:
        """Open an index that :meth:`build` wrote, for reading.

        Raises:
            UserError: the file is missing, damaged or something else.
        """
        if not path.is_file():
            raise UserError(f"there is no search index at {path}; build one, or check the path")
        try:
            connection = sqlite3.connect(path.resolve().as_uri() + "?mode=ro", uri=True, check_same_thread=False)
            marks = [connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("application_id", "user_version")]
            whole = connection.execute("PRAGMA quick_check(1)").fetchone()[0] == "ok"
        except sqlite3.Error:
            marks, whole = [], False
        if marks != [_APPLICATION, _FORMAT] or not whole:
            raise UserError(f"{path} is damaged or no search index of this version; delete it and build it again")
        return cls(connection, str(path))

    def __len__(self) -> int:
        return self._pages

    def page(self, identity: str) -> Hit | None:
        """The page with this id; None where there is none."""
        rows = self._run("SELECT id, title, text FROM page WHERE id = ?", whole_pairs(identity))
        if not rows:
            return None
        found, title, text = rows[0]
        return Hit(found, title, text, 0.0)

    def search(self, query: str, k: int = 5) -> list[Hit]:
        """The ``k`` best pages, best first; ties in the order of indexing.

        The query is plain words: no search syntax is read in it. Pages whose title the query spells out come first, the
        longest title first; then BM25 (Robertson and Zaragoza, 2009) over its words and neighbouring pairs of words.

        Raises:
            UserError: the index file has been damaged since it was opened.
        """
        words = words_of(query)[:MAX_TERMS]
        if not words or k < 1:
            return []
        rare = self._rare(words)
        bonus = self._titled(words, rare)
        match = _match(words, rare)
        scored = dict(
            self._run(
                "SELECT rowid, -bm25(words, ?, 1.0) AS score FROM words WHERE words MATCH ? ORDER BY score DESC, rowid LIMIT ?",
                TITLE_WEIGHT, match, k,
            )
        )  # fmt: skip
        for number in bonus.keys() - scored.keys():
            found = self._run(
                "SELECT -bm25(words, ?, 1.0) FROM words WHERE words MATCH ? AND rowid = ?", TITLE_WEIGHT, match, number
            )
            scored[number] = found[0][0] if found else 0.0
        ranked = sorted(
            ((bonus.get(number, 0.0) + score, number) for number, score in scored.items()), key=lambda x: (-x[0], x[1])
        )
        hits = []
        for score, number in ranked[:k]:
            identity, title, text = self._run("SELECT id, title, text FROM page WHERE number = ?", number)[0]
            hits.append(Hit(identity, title, text, score))
        return hits

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _rare(self, words: list[str]) -> set[str]:
        """The words worth looking up: in a large index, the rarest, and none that more than half the pages hold.

        Past half, FTS5 sets a word's weight to zero, so leaving such words out changes no order and saves the scan.
        """
        distinct = list(dict.fromkeys(words))
        if self._pages <= SMALL:
            return set(distinct)
        rows = self._run(
            f"SELECT term, pages FROM frequency WHERE term IN ({', '.join('?' * len(distinct))})", *distinct
        )
        frequency = dict(rows)
        rare: set[str] = set()
        left = MOST_MATCHES
        for word in sorted(distinct, key=lambda word: frequency.get(word, 0)):
            left -= frequency.get(word, 0)
            if frequency.get(word, 0) * 2 > self._pages or (rare and left < 0):
                break
            rare.add(word)
        return rare

    def _titled(self, words: list[str], rare: set[str]) -> dict[int, float]:
        """Bonus by page number for the titles that stand in the query, but for those inside a longer one."""
        asked = spans(words, rare)
        rows = self._run(f"SELECT number, key FROM page WHERE key IN ({', '.join('?' * len(asked))})", *asked)
        titles = outermost(key for _, key in rows)
        return {number: TITLE_BONUS * asked[key] for number, key in rows if key in titles}

    def _run(self, statement: str, *values: object) -> list[tuple]:
        try:
            with self._taken:
                return self._connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise UserError(f"{self._name} cannot be read ({error}); build it again") from error


def _fill(connection: sqlite3.Connection, pages: Iterable[tuple[str, str, str]]) -> None:
    connection.executescript(f"PRAGMA application_id = {_APPLICATION}; PRAGMA user_version = {_FORMAT};")
    connection.executescript(_SCHEMA)
    rows = ((*page, " ".join(words_of(page[1]))) for page in unique(pages))
    with connection:
        connection.executemany("INSERT INTO page(id, title, text, key) VALUES (?, ?, ?, ?)", rows)
        connection.execute("CREATE INDEX page_by_key ON page(key)")
        connection.execute("INSERT INTO words(words) VALUES ('rebuild')")
        connection.execute("INSERT INTO frequency SELECT term, doc FROM vocabulary")


def unique(pages: Iterable[tuple[str, str, str]]) -> Iterator[tuple[str, str, str]]:
    """Pages ``(id, title, text)`` as they come.

    Raises:
        UserError: there are none, or two of one id.
    """
    seen: set[str] = set()
    for name, title, text in pages:
        identity = whole_pairs(name)
        if identity in seen:
            raise UserError(f"two pages have the id {identity!r}; give every page its own")
        seen.add(identity)
        yield identity, whole_pairs(title), whole_pairs(text)
    if not seen:
        raise UserError("there are no pages to index; give at least one")


def spans(words: list[str], rare: set[str]) -> dict[str, int]:
    """What may be a title in a query: runs of its words, and their lengths.

    One of common words alone counts only as the whole query.
    """
    return {
        " ".join(words[start:end]): end - start
        for start in range(len(words))
        for end in range(start + 1, len(words) + 1)
        if end - start == len(words) or rare.intersection(words[start:end])
    }


def outermost(keys: Iterable[str]) -> set[str]:
    """Titles that stand inside no longer one of them."""
    titles = set(keys)
    return {short for short in titles if not any(f" {short} " in f" {long} " and short != long for long in titles)}


def words_of(text: str) -> list[str]:
    """Lower-case words without accents, as FTS5's ``unicode61 remove_diacritics 2`` sees them."""
    # Letter by letter for the few that are not ASCII: pages are read this way too.
    bare = _BEYOND_ASCII.sub(
        lambda letter: "" if unicodedata.combining(letter[0]) else letter[0], unicodedata.normalize("NFKD", text)
    )
    return re.findall(r"[^\W_]+", bare.lower())


def _match(words: list[str], rare: set[str]) -> str:
    """The FTS5 expression: every word or neighbouring pair, any of them. Quotes make each one plain text."""
    kept = [word for word in dict.fromkeys(words) if word in rare] or words[:1]  # common words only: any page will do
    pairs = [f"{first} {second}" for first, second in pairwise(words) if {first, second} <= rare]
    return " OR ".join(f'"{term}"' for term in [*kept, *dict.fromkeys(pairs)])
