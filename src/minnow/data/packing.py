"""Many documents of many lengths into rows of one length, with almost no padding."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from minnow.data.rows import IGNORED, Batch
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.files import read_json, whole_folder, write_json

_ARRAYS = ("tokens", "targets", "documents")
_TEXTS_AT_ONCE = 1024
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

    def take(self, rows: NDArray[np.int64] | slice) -> Batch:
        """The rows of these numbers, in this order."""
        arrays = (self.tokens, self.targets, self.documents)
        return Batch(*(torch.from_numpy(array[rows].astype(np.int64)) for array in arrays))

    def save(self, folder: Path, tokenizer_digest: str) -> None:
        """Write the arrays and a manifest; the folder appears whole or not at all.

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        with whole_folder(Path(folder)) as temporary:
            for name in _ARRAYS:
                np.save(temporary / f"{name}.npy", getattr(self, name))
            checksums = {name: _checksum(temporary / f"{name}.npy") for name in _ARRAYS}
            rows, length = self.tokens.shape
            manifest = {"rows": rows, "length": length, "tokenizer": tokenizer_digest, "sha256": checksums}
            write_json(temporary / "manifest.json", manifest)

    @classmethod
    def load(cls, folder: Path, tokenizer_digest: str) -> Packed:
        """Open a saved folder memory-mapped, read-only; every file is checked against the manifest first.

        Raises:
            UserError: a file is missing or damaged, or the rows were made with another tokenizer.
        """
        folder = Path(folder)
        manifest = read_json(folder / "manifest.json")
        if manifest["tokenizer"] != tokenizer_digest:
            raise UserError(
                f"{folder} was packed with another tokenizer (digest {manifest['tokenizer'][:12]}, not "
                f"{tokenizer_digest[:12]}); use that tokenizer or pack the corpus again"
            )
        for name, checksum in manifest["sha256"].items():
            file = folder / f"{name}.npy"
            if not file.is_file() or _checksum(file) != checksum:
                raise UserError(f"{file} is missing or damaged; delete {folder} and pack the corpus again")
        return cls(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


def _checksum(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def tokenize_documents(texts: Iterable[str], tokenizer: Tokenizer) -> list[NDArray[np.int32]]:
    """One int32 array per text: ``<|startoftext|>``, the text, ``<|im_end|>``; special tokens in it stay text."""
    sequences: list[NDArray[np.int32]] = []
    waiting: list[str] = []
    waiting_characters = 0

    def flush() -> None:
        for ids in tokenizer.encode_batch(waiting):
            sequences.append(np.array([*tokenizer.begin, *ids, tokenizer.eos_id], dtype=np.int32))
        waiting.clear()

    for text in texts:
        waiting.append(text)
        waiting_characters += len(text)
        if len(waiting) == _TEXTS_AT_ONCE or waiting_characters > 1 << 22:
            flush()
            waiting_characters = 0
    flush()
    return sequences


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

    lengths = _split_lengths(lengths, length)
    starts = np.cumsum(lengths) - lengths
    row, offset, number = _best_fit(lengths, length)
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


def _split_lengths(lengths: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Lengths of the pieces in order: full rows, then the rest."""
    count = -(-lengths // length)
    pieces = np.full(int(count.sum()), length)
    last = np.cumsum(count) - 1
    pieces[last] = lengths - (count - 1) * length
    return pieces


def _best_fit(
    lengths: NDArray[np.int64], length: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int16]]:
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
