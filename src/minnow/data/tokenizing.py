"""Documents to token ids: in one process or many, into arrays or into a corpus on disk."""

from __future__ import annotations

import math
import os
import random
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from minnow.data.corpus import Corpus, CorpusWriter
from minnow.data.documents import read_records
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.progress import track
from minnow.workers import worker_pool

HELD_OUT_EVERY = 20
"""Of a corpus one document in so many is held out."""

T = TypeVar("T")

SHARD_TOKENS = 1 << 26

Tokenised = tuple[NDArray[np.int32], NDArray[np.int64]]
"""Ids of several documents, one after the other, and each document's length."""

_TEXTS_AT_ONCE = 1024
_CHARACTERS_AT_ONCE = 1 << 20


class Place(NamedTuple):
    """A document's place: the file, the document in the file and the document in all files, each counted from 0."""

    file: int = 0
    row: int = 0
    number: int = 0


@dataclass(frozen=True)
class Document:
    """A text, how hard it is (0 where nobody says), and the place of the document after it."""

    text: str
    difficulty: float
    after: Place


@dataclass(frozen=True)
class FillInTheMiddle:
    """Documents rearranged so that a model learns to fill gaps (Bavarian et al., arXiv 2207.14255).

    A document is cut in three at two characters, each place equally likely, and written prefix, suffix, middle or, for
    every second one, suffix, prefix, middle. Which documents, and where, depends on their number alone.

    Attributes:
        share: of the documents.
    """

    share: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.share <= 1:
            raise UserError(f"the share of documents to fill in the middle is {self.share:g}; use 0 to 1")

    def arranged(self, text: str, number: int, words: Tokenizer) -> list[int | str]:
        """The document's texts and, as ids, the special tokens between them."""
        chance = random.Random(f"fill in the middle {number}")
        if chance.random() >= self.share:
            return [text]
        first, second = sorted((chance.randint(0, len(text)), chance.randint(0, len(text))))
        prefix, middle, suffix = text[:first], text[first:second], text[second:]
        before, between, after = words.fill_in_ids
        if chance.random() < 0.5:
            return [before, after, suffix, between, prefix, middle]
        return [before, prefix, after, suffix, between, middle]


def tokenize(
    texts: Sequence[str],
    words: Tokenizer,
    numbers: Sequence[int] = (),
    fim: FillInTheMiddle | None = None,
) -> Tokenised:
    """Texts as ids, one after the other, and the length of each: ``<|startoftext|>``, the text, ``<|im_end|>``.

    Special tokens in a text stay text.

    Args:
        numbers: of the texts, for ``fim``.
    """
    arranged: list[list[int | str]] = [[text] for text in texts]
    if fim is not None and fim.share:
        arranged = [fim.arranged(text, number, words) for text, number in zip(texts, numbers, strict=True)]
    encoded = iter(words.encode_batch([part for parts in arranged for part in parts if isinstance(part, str)]))
    begin, ids = words.begin, list[int]()
    lengths = np.empty(len(texts), np.int64)
    for i, parts in enumerate(arranged):
        before = len(ids)
        ids += begin
        for part in parts:
            ids += next(encoded) if isinstance(part, str) else (part,)
        ids.append(words.eos_id)
        lengths[i] = len(ids) - before
    return np.array(ids, np.int32), lengths


def tokenize_documents(texts: Iterable[str], words: Tokenizer) -> list[NDArray[np.int32]]:
    """One int32 array per text, as :func:`tokenize` writes it."""
    sequences: list[NDArray[np.int32]] = []
    for batch in _batches(texts, len):
        ids, lengths = tokenize(batch, words)
        sequences += np.split(ids, np.cumsum(lengths)[:-1])
    return sequences


def _batches(items: Iterable[T], size: Callable[[T], int]) -> Iterator[list[T]]:
    waiting: list[T] = []
    characters = 0
    for item in items:
        waiting.append(item)
        characters += size(item)
        if len(waiting) == _TEXTS_AT_ONCE or characters > _CHARACTERS_AT_ONCE:
            yield waiting
            waiting, characters = [], 0
    if waiting:
        yield waiting


def read_files(
    files: Sequence[str], text_field: str = "text", difficulty_field: str | None = None, held_out: bool | None = None
) -> Callable[[Place], Iterator[Document]]:
    """The documents of files from any place on.

    Args:
        difficulty_field: of each row, a number: how hard the document is.
        held_out: every :data:`HELD_OUT_EVERY`-th document alone, or all but those; where there are fewer, as much of the
            text from its end (at most half of the last document), or all but that. None for all.
    """
    fields = (text_field,) if difficulty_field is None else (text_field, difficulty_field)

    def every(place: Place) -> Iterator[Document]:
        number = place.number
        for at, file in enumerate(files[place.file :], place.file):
            skipped = place.row if at == place.file else 0
            for row, record in enumerate(read_records(file, fields)):
                if row >= skipped:
                    number += 1
                    yield Document(record[0], _difficulty(record, fields, file), Place(at, row + 1, number))

    def read(place: Place) -> Iterator[Document]:
        first = list(islice(every(Place()), HELD_OUT_EVERY)) if held_out is not None else []
        if held_out is None:
            yield from every(place)
        elif len(first) < HELD_OUT_EVERY:
            last = first.pop()
            size = sum(len(each.text) for each in (*first, last))
            end = len(last.text) - min(len(last.text) // 2, size // HELD_OUT_EVERY)
            kept = [replace(last, text=last.text[end:])] if held_out else [*first, replace(last, text=last.text[:end])]
            yield from (each for each in kept if each.after.number > place.number)
        else:
            yield from (each for each in every(place) if held_out == (each.after.number % HELD_OUT_EVERY == 0))

    return read


def _difficulty(record: tuple[Any, ...], fields: Sequence[str], file: str) -> float:
    if len(fields) == 1:
        return 0.0
    value = record[1]
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise UserError(f"the field '{fields[1]}' of {file} holds {value!r}, not a number; correct it or name another")
    return float(value)


def read_texts(texts: Sequence[str]) -> Callable[[Place], Iterator[Document]]:
    """Texts in memory as documents from any place on."""
    return lambda place: (Document(texts[at], 0.0, Place(0, at + 1, at + 1)) for at in range(place.number, len(texts)))


def tokenize_corpus(
    read: Callable[[Place], Iterator[Document]],
    words: Tokenizer,
    folder: str | Path,
    described: dict[str, Any],
    fim: FillInTheMiddle | None = None,
    processes: int = 0,
    shard_tokens: int = SHARD_TOKENS,
    graded: bool = False,
) -> Corpus:
    """Tokenise documents into a corpus; what an earlier, killed call has finished stays, and the bytes are the same.

    Args:
        read: the documents from a place on, the same in every call.
        described: what decides the documents, kept in the manifest; a folder of another description is refused.
        processes: that tokenise, beside this one, which reads; 0 for this one alone, where the tokenizer uses all cores.
        shard_tokens: a shard ends with the document that reaches so many.
        graded: keep the documents' difficulty.

    Raises:
        UserError: the folder holds another corpus, a document cannot be read, a process died, the disk is full.
    """
    fim = fim or FillInTheMiddle()
    writer = CorpusWriter(
        folder, words, described | {"fim": fim.share, "shard_tokens": shard_tokens}, shard_tokens, graded
    )
    if writer.finished:
        return Corpus(folder)
    batches = _batches(read(Place(*writer.place or ())), lambda document: len(document.text))
    with track(None, f"tokenize {folder}", "token", done=writer.tokens) as bar, _workers(words, processes) as ahead:
        for batch, (ids, lengths) in ahead(batches, fim):
            writer.add(ids, lengths, [each.difficulty for each in batch], [each.after for each in batch])
            bar.advance(len(ids))
        writer.finish()
    return Corpus(folder)


_Ahead = Callable[[Iterable[list[Document]], FillInTheMiddle], Iterator[tuple[list[Document], Tokenised]]]


def _job(words: Tokenizer, batch: Sequence[Document], fim: FillInTheMiddle) -> Tokenised:
    return tokenize([each.text for each in batch], words, [each.after.number for each in batch], fim)


@contextmanager
def _workers(words: Tokenizer, processes: int) -> Iterator[_Ahead]:
    """A way to tokenise batches in order, here or in ``processes`` others that are kept busy and end with this one."""
    if not processes:
        yield lambda batches, fim: ((batch, _job(words, batch, fim)) for batch in batches)
        return
    with worker_pool(processes, _begin, words) as pool:

        def ahead(
            batches: Iterable[list[Document]], fim: FillInTheMiddle
        ) -> Iterator[tuple[list[Document], Tokenised]]:
            waiting: deque[tuple[list[Document], Future[Tokenised]]] = deque()
            try:
                for batch in batches:
                    waiting.append((batch, pool.submit(_work, batch, fim)))
                    if len(waiting) > 2 * processes:
                        first, made = waiting.popleft()
                        yield first, made.result()
                for first, made in waiting:
                    yield first, made.result()
            except BrokenProcessPool as error:
                raise UserError(
                    "a tokenising process was killed, perhaps for want of memory; run the same command again, with fewer "
                    "processes: it goes on after the last finished shard"
                ) from error

        yield ahead


_words: Tokenizer | None = None


def _begin(words: Tokenizer) -> None:
    """Set up a worker, of one thread."""
    global _words
    _words = words
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _work(batch: Sequence[Document], fim: FillInTheMiddle) -> Tokenised:
    assert _words is not None
    return _job(_words, batch, fim)
