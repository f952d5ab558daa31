"""Many documents of many lengths into rows of one length, with almost no padding."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from minnow.data.rows import IGNORED, Batch
from minnow.errors import UserError

_MOST_DOCUMENTS = np.iinfo(np.int16).max


@dataclass
class Packed:
    """Rows of tokens ready for training.

    Attributes:
        tokens: int32 [N, T]; padding holds the pad id.
        targets: int32 [N, T]; the next token of the same document, -100 where nothing is trained.
        documents: int16 [N, T]; 0 is padding, 1, 2, … number the documents within a row.
    """

    tokens: NDArray[np.int32]
    targets: NDArray[np.int32]
    documents: NDArray[np.int16]

    @property
    def length(self) -> int:
        """Tokens in a row."""
        return self.tokens.shape[1]

    def __len__(self) -> int:
        return len(self.tokens)

    def fill(self, rows: NDArray[np.int64], batch: Batch, places: NDArray[np.int64]) -> None:
        """Write the rows of these numbers into the rows ``places`` of a batch."""
        pairs = ((batch.tokens, self.tokens), (batch.targets, self.targets), (batch.documents, self.documents))
        for values, array in pairs:
            values.numpy()[places] = array[rows]


def pack(
    sequences: Iterable[tuple[ArrayLike, Sequence[bool] | NDArray[np.bool_] | None]], length: int, pad_id: int
) -> Packed:
    """Pack documents into rows of ``length`` tokens by best fit, longest first; O(n log n), deterministic.

    Every token appears exactly once. A document longer than ``length`` is split; the last token of a piece still has
    the document's next token as its target. Position t is trained when the document has a token t + 1 and the mask
    (None: all True) is True there.

    Args:
        sequences: pairs of token ids and, of the same length, which of them are to be predicted.
        length: tokens in a row.
        pad_id: fills what is left of a row.

    Raises:
        UserError: ``length`` is below 2.
        ValueError: a mask is not as long as its ids.
    """
    if length < 2:
        raise UserError(f"rows of {length} tokens leave nothing to predict; use a row length of at least 2")
    pieces, trained = [], []
    for ids, mask in sequences:
        array = np.asarray(ids, dtype=np.int32)
        if array.size == 0:
            continue
        wanted = np.ones(array.size, bool) if mask is None else np.asarray(mask, dtype=bool)
        if wanted.size != array.size:
            raise ValueError(f"a mask of {wanted.size} for {array.size} tokens")
        pieces.append(array)
        trained.append(wanted)
    if not pieces:
        return Packed(np.empty((0, length), np.int32), np.empty((0, length), np.int32), np.empty((0, length), np.int16))

    lengths = np.array([piece.size for piece in pieces])
    tokens = np.concatenate(pieces)
    targets = np.full(tokens.size, IGNORED, np.int32)
    wanted = np.concatenate(trained)
    wanted[np.cumsum(lengths) - lengths] = False  # the first token of a document is nobody's next token
    targets[:-1][wanted[1:]] = tokens[1:][wanted[1:]]

    lengths = split_lengths(lengths, length)
    starts = np.cumsum(lengths) - lengths
    row, offset, number = best_fit(lengths, length)
    rows = int(row.max()) + 1
    to = np.arange(tokens.size) + np.repeat(row * length + offset - starts, lengths)
    packed = Packed(
        np.full((rows, length), pad_id, np.int32),
        np.full((rows, length), IGNORED, np.int32),
        np.zeros((rows, length), np.int16),
    )
    packed.tokens.ravel()[to] = tokens
    packed.targets.ravel()[to] = targets
    packed.documents.ravel()[to] = np.repeat(number, lengths)
    return packed


def split_lengths(lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Lengths of the pieces in order: full rows, then the rest."""
    count = -(-lengths // length)
    pieces = np.full(int(count.sum()), length)
    last = np.cumsum(count) - 1
    pieces[last] = lengths - (count - 1) * length
    return pieces


def best_fit(lengths: NDArray[np.int64], length: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int16]]:
    """Row, offset in the row and number (from 1) of every piece, by best fit decreasing."""
    row = np.empty(lengths.size, np.int64)
    offset = np.empty(lengths.size, np.int64)
    number = np.empty(lengths.size, np.int16)
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # rows by the room left in them
    rooms = 0  # bit r is set when open_rows[r] is not empty: the lowest bit at or above a size is the best fit
    filled: list[int] = []  # documents in each row
    for index in np.argsort(-lengths, kind="stable").tolist():
        size = int(lengths[index])
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            chosen = open_rows[room].pop()
            if not open_rows[room]:
                rooms ^= 1 << room
        else:
            room, chosen = length, len(filled)
            filled.append(0)
        filled[chosen] += 1
        row[index], offset[index], number[index] = chosen, length - room, filled[chosen]
        left = room - size
        if left and filled[chosen] < _MOST_DOCUMENTS:
            open_rows[left].append(chosen)
            rooms |= 1 << left
    return row, offset, number
