"""A tokenised corpus: shards of token ids with document offsets, and a manifest with their checksums.

``manifest.json`` names the shards in order. Of shard ``00000`` there are ``00000.tokens`` (little-endian uint16, or
uint32 for a vocabulary above 65,536), ``00000.documents`` (int64: where each document begins, and the end) and, where
documents are graded, ``00000.difficulty`` (float32). A document is ``<|startoftext|>``, its text, ``<|im_end|>``, and
lies in one shard. All of it is written shard by shard, each file whole, the manifest last: a killed writer goes on after
the last shard that the manifest names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.data.store import Store
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError
from minnow.progress import track

MANIFEST = "manifest.json"
HELD_OUT = "held-out"
"""Below a corpus's folder, the corpus of the documents that were set aside."""

_FORMAT = 1
_DOCUMENTS, _DIFFICULTY = "<i8", "<f4"


@dataclass(frozen=True)
class Shard:
    """One shard's size and the SHA-256 of its files by their suffix."""

    name: str
    tokens: int
    documents: int
    sha256: dict[str, str]


class CorpusWriter:
    """Documents into shards; opened again on a folder that is not finished it goes on after its last whole shard.

    Attributes:
        finished: whether the corpus is complete.
        place: where the documents after the last whole shard begin, as its last :meth:`add` said; None at the beginning.
    """

    def __init__(
        self, folder: str | Path, words: Tokenizer, described: dict[str, Any], shard_tokens: int, graded: bool
    ) -> None:
        """Begin or go on.

        Args:
            described: what decides the documents; JSON, kept in the manifest.
            shard_tokens: a shard ends with the document that reaches so many.
            graded: keep a difficulty for each document.

        Raises:
            UserError: the folder holds a corpus of another tokenizer or description.
        """
        self._store, self._shard_tokens, self._graded = Store(folder), shard_tokens, graded
        self._dtype = "<u2" if words.vocab_size <= 1 << 16 else "<u4"
        self._head = {
            "format": _FORMAT,
            "tokenizer": words.digest,
            "dtype": self._dtype,
            "special": {"pad": words.pad_id, "eos": words.eos_id},
            "described": json.loads(json.dumps(described)),
        }
        self.finished, self.place = False, None
        self._shards: list[Shard] = []
        self._waiting: list[tuple[NDArray[Any], NDArray[np.int64], NDArray[np.float32]]] = []
        self._tokens = 0  # that wait
        if MANIFEST in self._store.sizes():
            known = _manifest(self._store)
            for name, value in self._head.items():
                if known.get(name) != value:
                    raise UserError(
                        f"{self._store.location} holds a corpus of other documents, settings or another tokenizer (its "
                        f"{name} differs); delete it or choose another folder"
                    )
            self.finished, self.place = known["finished"], known["place"]
            self._shards = [Shard(**shard) for shard in known["shards"]]

    @property
    def tokens(self) -> int:
        """In all whole shards."""
        return sum(shard.tokens for shard in self._shards)

    def add(
        self, ids: NDArray[np.int32], lengths: NDArray[np.int64], difficulty: Sequence[float], after: Sequence[Any]
    ) -> None:
        """Append documents.

        Args:
            ids: of all documents, one after the other.
            lengths, difficulty: of each.
            after: of each, the place of the one after it (JSON).

        Raises:
            UserError: the disk is full or the folder cannot be written.
        """
        ends = np.cumsum(lengths)
        begin = 0
        while begin < len(lengths):
            start = int(ends[begin - 1]) if begin else 0
            full = int(np.searchsorted(ends, self._shard_tokens - self._tokens + start)) + 1
            part = slice(begin, min(full, len(lengths)))
            stop = int(ends[part.stop - 1])
            grades = np.array(difficulty[part], _DIFFICULTY)
            self._waiting.append((ids[start:stop].astype(self._dtype), lengths[part], grades))
            self._tokens += stop - start
            begin = part.stop
            if self._tokens >= self._shard_tokens:
                self._close(after[begin - 1])

    def finish(self) -> None:
        """Write what waits and mark the corpus complete, in one manifest: after a kill nothing is read twice."""
        self.finished = True
        if self._waiting:
            self._close(None)
        else:
            self._write_manifest()

    def _close(self, place: Any) -> None:
        ids, lengths, difficulty = (np.concatenate(parts) for parts in zip(*self._waiting, strict=True))
        files = {"tokens": ids, "documents": np.concatenate([[0], np.cumsum(lengths)]).astype(_DOCUMENTS)}
        if self._graded:
            files["difficulty"] = difficulty
        name = f"{len(self._shards):05}"
        checksums = {}
        for suffix, array in files.items():
            content = array.data.cast("B")
            checksums[suffix] = hashlib.sha256(content).hexdigest()
            self._store.write(f"{name}.{suffix}", content)
        self._shards.append(Shard(name, len(ids), len(lengths), checksums))
        self.place, self._waiting, self._tokens = place, [], 0
        self._write_manifest()

    def _write_manifest(self) -> None:
        totals = {"tokens": self.tokens, "documents": sum(shard.documents for shard in self._shards)}
        state = {"finished": self.finished, "place": self.place, **totals, "shards": list(map(asdict, self._shards))}
        self._store.write(MANIFEST, (json.dumps(self._head | state, indent=1) + "\n").encode())


def _manifest(store: Store) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(store.read(MANIFEST))
        if found["format"] != _FORMAT:
            raise UserError(f"{store.path(MANIFEST)} is of format {found['format']}; this version reads {_FORMAT}")
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"{store.path(MANIFEST)} is damaged ({error}); tokenise the corpus again") from error
    return found


class Corpus:
    """A finished corpus, open for reading; tokens stay on disk, or where they are, until they are read.

    Attributes:
        tokens, documents: how many there are.
        pad_id, eos_id: what fills rows, and ends documents.
        described: what decided the documents.
        graded: whether documents have a difficulty.
    """

    def __init__(self, location: str | Path, tokenizer_digest: str | None = None) -> None:
        """Open a folder or URL; every file's size is checked, its content is not (see :meth:`verify`).

        Args:
            tokenizer_digest: of the tokenizer that it must be written with.

        Raises:
            UserError: it is no corpus or not a finished one, a shard is missing or cut short, or the tokenizer differs.
        """
        self._store = Store(location)
        self.location = self._store.location
        sizes = self._store.sizes()
        if MANIFEST not in sizes:
            raise UserError(f"{location} holds no {MANIFEST} of a tokenised corpus; make one with minnow data tokenize")
        known = _manifest(self._store)
        if not known["finished"]:
            raise UserError(
                f"{location} is not finished: {known['documents']} documents are tokenised; run the same command again"
            )
        if tokenizer_digest is not None and known["tokenizer"] != tokenizer_digest:
            raise UserError(
                f"{location} was written with another tokenizer (digest {known['tokenizer'][:12]}, not "
                f"{tokenizer_digest[:12]}); use that tokenizer or tokenise the text again"
            )
        self.tokenizer_digest: str = known["tokenizer"]
        self.tokens: int = known["tokens"]
        self.documents: int = known["documents"]
        self.described: dict[str, Any] = known["described"]
        self.shards = [Shard(**shard) for shard in known["shards"]]
        self.pad_id, self.eos_id = known["special"]["pad"], known["special"]["eos"]
        self.dtype = np.dtype(known["dtype"])
        self.graded = any("difficulty" in shard.sha256 for shard in self.shards)
        self.starts = np.cumsum([0, *(shard.tokens for shard in self.shards)])
        """Where each shard's tokens begin among all, and the end."""
        self._token_files = [f"{shard.name}.tokens" for shard in self.shards]
        widths = {"tokens": self.dtype.itemsize, "documents": 8, "difficulty": 4}
        for shard in self.shards:
            counts = {"tokens": shard.tokens, "documents": shard.documents + 1, "difficulty": shard.documents}
            for suffix in shard.sha256:
                file, size = f"{shard.name}.{suffix}", widths[suffix] * counts[suffix]
                if sizes.get(file) != size:
                    found = f"has {sizes[file]} bytes, not {size}" if file in sizes else "is missing"
                    raise UserError(
                        f"{self._store.path(file)} {found}; restore it, or delete {location} and tokenise the text again"
                    )

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of the checksums of all shards."""
        return hashlib.sha256(json.dumps([shard.sha256 for shard in self.shards]).encode()).hexdigest()

    def verify(self) -> None:
        """Read every file and compare it with its checksum.

        Raises:
            UserError: a file is damaged; the sentence names the first.
        """
        with track(self.tokens, f"verify {self.location}", "token") as bar:
            for shard in self.shards:
                for suffix, checksum in shard.sha256.items():
                    file = f"{shard.name}.{suffix}"
                    if hashlib.sha256(self._store.array(file, "u1").data).hexdigest() != checksum:
                        raise UserError(
                            f"{self._store.path(file)} is damaged (its checksum differs); restore it, or delete "
                            f"{self.location} and tokenise the text again"
                        )
                bar.advance(shard.tokens)

    def offsets(self, shard: int) -> NDArray[np.int64]:
        """Where each document of a shard begins, counted from the shard's first token, and the end."""
        return self._store.array(f"{self.shards[shard].name}.documents", _DOCUMENTS)

    def difficulty(self, shard: int) -> NDArray[np.float32]:
        """Of each document of a shard."""
        return self._store.array(f"{self.shards[shard].name}.difficulty", _DIFFICULTY)

    def read(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> list[NDArray[Any]]:
        """Stretches of tokens, each in one shard: ``counts[i]`` from token ``starts[i]`` of the corpus on."""
        which = np.searchsorted(self.starts, starts, side="right") - 1
        names = [self._token_files[shard] for shard in which.tolist()]
        return self._store.ranges(names, (starts - self.starts[which]).tolist(), counts.tolist(), self.dtype.str)

    def addresses(self, starts: NDArray[np.int64], counts: NDArray[np.int64]) -> tuple[NDArray[np.int64], Any]:
        """Where in memory the stretches of :meth:`read` are, and what keeps them there."""
        if self._store.is_remote:
            kept = self.read(starts, counts)
            return np.array([each.ctypes.data for each in kept], np.int64), kept
        shards, which = np.unique(np.searchsorted(self.starts, starts, side="right") - 1, return_inverse=True)
        kept = [self._store.array(self._token_files[shard], self.dtype.str) for shard in shards.tolist()]
        begins = np.array([each.ctypes.data for each in kept], np.int64)
        return begins[which] + (starts - self.starts[shards][which]) * self.dtype.itemsize, kept

    def document(self, number: int) -> NDArray[Any]:
        """The ids of one document, counted through all shards."""
        for shard, each in enumerate(self.shards):
            if number < each.documents:
                begin, end = self.offsets(shard)[number : number + 2]
                return self.read(self.starts[shard : shard + 1] + begin, np.array([end - begin]))[0]
            number -= each.documents
        raise IndexError(number)
