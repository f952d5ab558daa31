"""Documents out of the files people have: text, JSON lines, JSON, Parquet, plain or compressed."""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from minnow.errors import UserError

DOCUMENT_CHARACTERS = 1 << 17
"""A text file longer than this many characters is cut into documents of at most this many."""

_FORMATS = (".txt", ".md", ".jsonl", ".json", ".parquet")
_COMPRESSIONS = (".gz", ".xz")
_CHUNK_BYTES = 1 << 20


def read_documents(path: Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file, streamed in order; those of white space only are left out.

    ``.txt`` and ``.md``: one document, or for a long file several, cut after a blank line where there is one.
    ``.jsonl``, ``.json`` (a list) and ``.parquet``: the field ``text_field`` of every object or row. Each may end in
    ``.gz`` or ``.xz`` as well. A missing or unknown file is reported at the call, bad content when it is reached.

    Raises:
        UserError: the file is missing, unreadable, of an unknown kind, not UTF-8, empty, or lacks the field.
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] in _COMPRESSIONS else (suffixes or [""])[-1]
    if not path.exists():
        raise UserError(f"{path} does not exist; {_nearest_file(path)}")
    if path.is_dir():
        raise UserError(f"{path} is a folder; name one file in it ({', '.join(_FORMATS)}, or .gz or .xz of them)")
    if kind not in _FORMATS:
        raise UserError(f"{path} is of an unknown kind; use {', '.join(_FORMATS)}, or .gz or .xz of them")
    return _documents(path, kind, text_field)


def _documents(path: Path, kind: str, field: str) -> Iterator[str]:
    found = False
    try:
        with open_file(path) as stream:
            for text in _read(stream, path, kind, field):
                if text and not text.isspace():
                    found = True
                    yield text
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not compressed as its name says ({error}); fetch it again") from error
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check the file and its rights") from error
    if not found:
        raise UserError(f"{path} holds no text; give a corpus that is not empty")


def open_file(path: Path) -> IO[bytes]:
    """The bytes of a file, decompressed where its name ends in ``.gz`` or ``.xz``."""
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    return openers.get(path.suffix.lower(), open)(path, "rb")


def _read(stream: IO[bytes], path: Path, kind: str, field: str) -> Iterator[str]:
    if kind == ".jsonl":
        return _json_lines(stream, path, field)
    if kind == ".json":
        return _json_list(stream, path, field)
    if kind == ".parquet":
        return _parquet(stream, path, field)
    return _blocks(_decoded(stream, path), DOCUMENT_CHARACTERS)


def _not_utf8(path: Path, offset: int) -> UserError:
    place = f"byte {offset} of its decompressed content" if path.suffix.lower() in _COMPRESSIONS else f"byte {offset}"
    return UserError(
        f"{path} is not UTF-8 text at {place}; convert it, for example with "
        "`iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW` (or -f UTF-16), and use the result"
    )


def _decoded(stream: IO[bytes], path: Path) -> Iterator[str]:
    """Text in chunks, without a byte order mark and with every line end as one newline character."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    offset = 0
    while True:
        chunk = stream.read(_CHUNK_BYTES)
        pending = len(decoder.getstate()[0])
        try:
            text = decoder.decode(chunk, final=not chunk)
        except UnicodeDecodeError as error:
            # The decoder's positions count from what it held back of the last chunk, less a mark it has removed.
            removed = pending + len(chunk) - len(error.object)
            raise _not_utf8(path, offset - pending + removed + error.start) from error
        yield newlines.decode(text, final=not chunk)
        if not chunk:
            return
        offset += len(chunk)


def _blocks(chunks: Iterable[str], limit: int) -> Iterator[str]:
    """Cut a stream of text into documents of at most ``limit`` characters; joined, they are the text."""
    waiting = ""
    for chunk in chunks:
        waiting += chunk
        start = 0
        while len(waiting) - start > limit:
            end = _cut(waiting, start, start + limit)
            yield waiting[start:end]
            start = end
        waiting = waiting[start:]
    yield waiting


def _cut(text: str, start: int, end: int) -> int:
    """Where to end a document that may reach ``end``: after a blank line, else a line, else a word, else there."""
    for mark in ("\n\n", "\n", " "):
        # In the second half only, so that one early blank line does not make a tiny document.
        found = text.rfind(mark, (start + end) // 2, end)
        if found >= 0:
            return found + len(mark)
    return end


def _json_lines(stream: IO[bytes], path: Path, field: str) -> Iterator[str]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise _not_utf8(path, offset + len(line) - len(error.object) + error.start) from error
        offset += len(line)
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except ValueError as error:
            raise UserError(f"line {number} of {path} is not JSON ({error}); correct or remove that line") from error
        yield _field(value, field, f"line {number} of {path}")


def _json_list(stream: IO[bytes], path: Path, field: str) -> Iterator[str]:
    text = "".join(_decoded(stream, path))
    if not text.strip():
        return
    try:
        values = json.loads(text)
    except ValueError as error:
        remedy = "correct it, or name it .jsonl if it holds one object per line"
        raise UserError(f"{path} is not JSON ({error}); {remedy}") from error
    if not isinstance(values, list):
        raise UserError(f"{path} holds one {type(values).__name__}, not a list; put the documents in a JSON list")
    for number, value in enumerate(values, start=1):
        yield _field(value, field, f"entry {number} of {path}")


def _parquet(stream: IO[bytes], path: Path, field: str) -> Iterator[str]:
    source = io.BytesIO(stream.read()) if path.suffix.lower() in _COMPRESSIONS else stream
    try:
        file = pyarrow.parquet.ParquetFile(source)
        if field not in file.schema_arrow.names:
            raise _no_field(str(path), field, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(columns=[field], batch_size=1024):
            for value in batch.column(0).to_pylist():
                number += 1
                yield _text(value, field, f"row {number} of {path}")
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); fetch or write it again") from error


def _field(value: Any, field: str, place: str) -> str:
    if not isinstance(value, dict):
        raise UserError(
            f'{place} is not an object but {json.dumps(value, ensure_ascii=False)[:40]}; write {{"{field}": "..."}}'
        )
    if field not in value:
        raise _no_field(place, field, list(value))
    return _text(value[field], field, place)


def _text(value: Any, field: str, place: str) -> str:
    if not isinstance(value, str):
        raise UserError(
            f"the field '{field}' of {place} is not text but {type(value).__name__}; correct it or name another field"
        )
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"the field '{field}' of {place} has half of a surrogate pair at character {error.start}, which no text "
            "file can hold; remove it"
        ) from error
    return value


def _no_field(place: str, field: str, names: list[str]) -> UserError:
    near = difflib.get_close_matches(field, names, n=1)
    remedy = f"did you mean '{near[0]}'?" if near else "name one of them"
    return UserError(f"{place} has no field '{field}', only {', '.join(map(repr, names)) or 'none at all'}; {remedy}")


def _nearest_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"nor does the folder {path.parent}; check the path"
    near = difflib.get_close_matches(path.name, [each.name for each in path.parent.iterdir()], n=1)
    return f"did you mean {path.parent / near[0]}?" if near else "check the path"
