"""Rows of one length out of a tokenised corpus, packed by best fit or cut one after the other."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from minnow.data.corpus import Corpus
from minnow.data.order import Permutation
from minnow.data.packing import best_fit, split_lengths
from minnow.data.rows import IGNORED, Batch
from minnow.errors import UserError
from minnow.files import whole_folder
from minnow.native import Library, NotCompiled
from minnow.progress import track

Packing = Literal["best-fit", "cut"]

_WINDOW = 1 << 16  # documents that are packed together: packing takes little memory, and rows stay near in a file


@dataclass(frozen=True)
class _Table:
    """Which stretches of a corpus each row is made of.

    Attributes:
        first: ``[rows + 1]`` each row's first stretch.
        starts, counts: of each stretch, its first token in the corpus and how many they are.
    """

    first: NDArray[np.int64]
    starts: NDArray[np.int64]
    counts: NDArray[np.int32]


class CorpusRows:
    """A corpus as rows: every token once, targets and document numbers worked out as they are read.

    ``best-fit`` keeps documents whole where they fit, from a table that is made once from the document offsets (packing
    longest first within 65,536 documents; a document longer than a row is split). ``cut`` takes the tokens as they come,
    document after document, and needs no table: it opens at once, whatever the corpus's size.

    Attributes:
        length: tokens in a row.
    """

    def __init__(
        self,
        corpus: Corpus,
        length: int,
        packing: Packing = "best-fit",
        by_difficulty: bool = False,
        cache: Path | None = None,
    ) -> None:
        """Prepare rows of ``length`` tokens.

        Args:
            by_difficulty: number the rows from the easiest documents to the hardest; best fit only.
            cache: folder that keeps the table for the next time.

        Raises:
            UserError: ``length`` is below 2, or the corpus has no difficulties to order by.
        """
        if length < 2:
            raise UserError(f"rows of {length} tokens leave nothing to predict; use a row length of at least 2")
        if by_difficulty and (packing != "best-fit" or not corpus.graded):
            reason = (
                "is not graded; tokenise it with a difficulty field" if not corpus.graded else "needs packing best-fit"
            )
            raise UserError(f"an order by difficulty: {corpus.location} {reason}")
        self.corpus, self.length = corpus, length
        self._table = _table(corpus, length, by_difficulty, cache) if packing == "best-fit" else None
        per_shard = -(-np.diff(corpus.starts) // length)  # what is left at a shard's end is a row with padding
        self._first_rows = np.concatenate([[0], np.cumsum(per_shard)])
        self._rows = int(self._first_rows[-1]) if self._table is None else len(self._table.first) - 1

    def __len__(self) -> int:
        return self._rows

    def fill(self, rows: NDArray[np.int64], batch: Batch, places: NDArray[np.int64]) -> None:
        """Write the rows of these numbers into the rows ``places`` of a batch."""
        corpus, length = self.corpus, self.length
        row, starts, counts = self._stretches(rows)
        filled = np.bincount(row, counts, len(rows)).astype(np.int64)
        offset = np.cumsum(counts) - counts
        offset -= np.repeat(np.cumsum(filled) - filled, np.bincount(row, minlength=len(rows)))
        # A row's last target is the token after it, where the document goes on.
        shard_ends = corpus.starts[np.searchsorted(corpus.starts, starts, side="right")]
        wanted = np.where(offset + counts == length, np.minimum(counts + 1, shard_ends - starts), counts)
        if (library := _library()) is not None:
            addresses, kept = corpus.addresses(starts, wanted)
            write = library.fill_rows_2 if corpus.dtype.itemsize == 2 else library.fill_rows_4
            arrays = [each.ctypes.data for each in (addresses, wanted, row, offset)]
            outputs = (batch.tokens.data_ptr(), batch.targets.data_ptr(), batch.documents.data_ptr())
            write(*arrays, len(row), places.ctypes.data, length, corpus.eos_id, corpus.pad_id, *outputs)
            del kept
            return
        buffer = np.full((len(rows), length + 1), corpus.pad_id, corpus.dtype)
        for each, at, ids in zip(row.tolist(), offset.tolist(), corpus.read(starts, wanted), strict=True):
            buffer[each, at : at + len(ids)] = ids
        _fill(buffer, filled, corpus.eos_id, batch, places)

    def _stretches(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Of each stretch of these rows, in order: the row (from 0), its first token and its length."""
        if self._table is None:
            shard = np.searchsorted(self._first_rows, rows, side="right") - 1
            starts = self.corpus.starts[shard] + (rows - self._first_rows[shard]) * self.length
            counts = np.minimum(self.length, self.corpus.starts[shard + 1] - starts)
            return np.arange(len(rows)), starts, counts
        first, number = self._table.first[rows], self._table.first[rows + 1] - self._table.first[rows]
        row = np.repeat(np.arange(len(rows)), number)
        place = np.arange(len(row)) - np.repeat(np.cumsum(number) - number, number) + np.repeat(first, number)
        return row, self._table.starts[place], self._table.counts[place].astype(np.int64)


@functools.cache
def _library() -> ctypes.CDLL | None:
    """``rows.c``, or None where no compiler makes it: numpy then does the same at about half the rate."""
    try:
        library, _ = Library("rows", [Path(__file__).with_name("rows.c")], ["-std=c11", "-O3", "-fPIC"]).load()
    except NotCompiled:
        return None
    pointer, long = ctypes.c_void_p, ctypes.c_int64
    for function in (library.fill_rows_2, library.fill_rows_4):
        function.argtypes, function.restype = [*[pointer] * 4, long, pointer, *[long] * 3, *[pointer] * 3], None
    return library


def _fill(
    buffer: NDArray[Any], filled: NDArray[np.int64], eos_id: int, batch: Batch, places: NDArray[np.int64]
) -> None:
    """What ``rows.c`` does: write rows and one token more, ``[rows, T + 1]``, into the rows ``places`` of a batch.

    Args:
        filled: of each row, the tokens before its padding.
        eos_id: ends each document, and is nowhere else.
    """
    rows, length = len(buffer), buffer.shape[1] - 1
    tokens, targets, documents = (values.numpy() for values in (batch.tokens, batch.targets, batch.documents))
    # Documents are few and long: all is worked out from where they end, and each token is only copied.
    row, column = np.divmod(np.flatnonzero(buffer == eos_id), length + 1)
    inside = column < length
    row, column = row[inside], column[inside]
    begins = np.sort(np.concatenate([np.arange(rows) * length, (row * length + column + 1)[column < length - 1]]))
    numbers = np.arange(1, len(begins) + 1) - np.searchsorted(begins, begins // length * length)
    found = np.repeat(numbers.astype(np.int32), np.diff(begins, append=rows * length)).reshape(rows, length)
    for at, place in enumerate(places.tolist()):
        tokens[place] = buffer[at, :-1]
        targets[place] = buffer[at, 1:]
        documents[place] = found[at]
    targets[places[row], column] = IGNORED
    for at in np.flatnonzero(filled < length).tolist():
        documents[places[at], filled[at] :] = 0
        targets[places[at], filled[at] :] = IGNORED


def _table(corpus: Corpus, length: int, by_difficulty: bool, cache: Path | None) -> _Table:
    folder = cache and cache / f"rows-{length}{'-by-difficulty' * by_difficulty}-{corpus.digest[:16]}"
    if folder is None or not folder.exists():
        first, starts, counts = [np.zeros(1, np.int64)], [np.empty(0, np.int64)], [np.empty(0, np.int32)]
        with track(corpus.documents, f"pack {corpus.location}", "document") as bar:
            for begins, lengths in _windows(corpus, by_difficulty):
                pieces = split_lengths(lengths, length)
                origin = np.repeat(begins - (np.cumsum(lengths) - lengths), -(-lengths // length))
                row, offset, _ = best_fit(pieces, length)
                if by_difficulty:  # which packing has sorted by length within the window
                    row = Permutation(int(row.max()) + 1)(row)
                order = np.lexsort((offset, row))
                starts.append((origin + np.cumsum(pieces) - pieces)[order])
                counts.append(pieces[order].astype(np.int32))
                first.append(first[-1][-1] + np.cumsum(np.bincount(row)))
                bar.advance(len(lengths))
        made = _Table(np.concatenate(first), np.concatenate(starts), np.concatenate(counts))
        if folder is None:
            return made
        with whole_folder(folder) as temporary:
            for name, array in vars(made).items():
                np.save(temporary / f"{name}.npy", array)
    return _Table(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("first", "starts", "counts")))


def _windows(corpus: Corpus, by_difficulty: bool) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """First token and length of documents that are packed together: as they lie, or from easy to hard."""
    shards = range(len(corpus.shards))
    if by_difficulty:
        offsets = [corpus.offsets(shard) for shard in shards]
        begins = np.concatenate([each[:-1] + corpus.starts[shard] for shard, each in enumerate(offsets)])
        lengths = np.concatenate([np.diff(each) for each in offsets])
        # Among equals an order without pattern, so that neighbours in the corpus do not stay together.
        equals = Permutation(len(begins))(np.arange(len(begins)))
        order = np.lexsort((equals, np.concatenate([corpus.difficulty(shard) for shard in shards])))
        whole = iter([(begins[order], lengths[order])])
    else:
        whole = ((corpus.offsets(s)[:-1] + corpus.starts[s], np.diff(corpus.offsets(s))) for s in shards)
    for begins, lengths in whole:
        size = min(_WINDOW, max(256, len(begins) // 64)) if by_difficulty else _WINDOW
        for at in range(0, len(begins), size):
            yield begins[at : at + size], lengths[at : at + size]
