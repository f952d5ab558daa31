"""Documents out of the files people have: text, JSON lines, JSON, Parquet, plain or compressed."""

from __future__ import annotations

import codecs
import difflib
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

import pyarrow
import pyarrow.parquet

from minnow.data.store import is_url, open_binary
from minnow.errors import UserError
from minnow.files import as_row, json_row

DOCUMENT_CHARACTERS = 1 << 17
"""A text file longer than this many characters is cut into documents of at most this many."""

_FORMATS = (".txt", ".md", ".jsonl", ".json", ".parquet")
_COMPRESSIONS = (".gz", ".xz")
_CHUNK_BYTES = 1 << 20


def read_documents(path: str | Path, text_field: str = "text") -> Iterator[str]:
    """The documents of one file or URL, streamed in order; those of white space only are left out.

    ``.txt`` and ``.md``: one document, or for a long file several, cut after a blank line where there is one.
    ``.jsonl``, ``.json`` (a list) and ``.parquet``: the field ``text_field`` of every object or row. Each may end in
    ``.gz`` or ``.xz`` as well. A missing or unknown file is reported at the call, bad content and a URL that leads
    nowhere when they are reached.

    Raises:
        UserError: the file is missing, unreadable, of an unknown kind, not UTF-8, empty, or lacks the field.
    """
    return (record[0] for record in read_records(path, (text_field,)))


def read_records(path: str | Path, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    """:func:`read_documents` with more than the text: the values of ``fields``, the first of which is the text."""
    path = str(path)
    name = path.rpartition("/")[2].lower()
    kind = Path(name.removesuffix(_compression(name))).suffix
    if not is_url(path):
        if not Path(path).exists():
            raise UserError(f"{path} does not exist; {_nearest_file(Path(path))}")
        if Path(path).is_dir():
            raise UserError(f"{path} is a folder; name one file in it ({', '.join(_FORMATS)}, or .gz or .xz of them)")
    if kind not in _FORMATS:
        raise UserError(f"{path} is of an unknown kind; use {', '.join(_FORMATS)}, or .gz or .xz of them")
    if len(fields) > 1 and kind in (".txt", ".md"):
        raise UserError(f"{path} is plain text and has no field '{fields[1]}'; leave that out or give JSON lines")
    return _records(path, kind, fields)


def _records(path: str, kind: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    found = False
    try:
        with open_file(path) as stream:
            for record in _read(stream, path, kind, fields):
                if record[0] and not record[0].isspace():
                    found = True
                    yield record
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; check the file and its rights") from error
    except Exception as error:
        if isinstance(error, UserError) or not is_url(path):
            raise
        raise UserError(f"{path} cannot be read ({error}); check the network and the rights") from error
    if not found:
        raise UserError(f"{path} holds no text; give a corpus that is not empty")


@contextmanager
def open_file(path: str | Path) -> Iterator[IO[bytes]]:
    """The bytes of a file or URL, decompressed where its name ends in ``.gz`` or ``.xz``.

    Raises:
        UserError: what is read of it cannot be decompressed.
    """
    openers: dict[str, Any] = {".gz": gzip.open, ".xz": lzma.open}
    try:
        with open_binary(str(path)) as file, openers.get(_compression(path), nullcontext)(file) as stream:
            yield stream
    except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path} is damaged or not compressed as its name says ({error}); fetch it again") from error


def _compression(path: str | Path) -> str:
    return next((each for each in _COMPRESSIONS if str(path).lower().endswith(each)), "")


def _read(stream: IO[bytes], path: str, kind: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    if kind == ".jsonl":
        return _json_lines(stream, path, fields)
    if kind == ".json":
        return _json_list(stream, path, fields)
    if kind == ".parquet":
        return _parquet(stream, path, fields)
    return ((block,) for block in _blocks(_decoded(stream, path), DOCUMENT_CHARACTERS))


def not_utf8(path: str, offset: int) -> UserError:
    place = f"byte {offset} of its decompressed content" if _compression(path) else f"byte {offset}"
    return UserError(
        f"{path} is not UTF-8 text at {place}; convert it, for example with "
        "`iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW` (or -f UTF-16), and use the result"
    )


def _decoded(stream: IO[bytes], path: str) -> Iterator[str]:
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
            raise not_utf8(path, offset - pending + removed + error.start) from error
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


def _json_lines(stream: IO[bytes], path: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    offset = 0
    for number, line in enumerate(stream, start=1):
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise not_utf8(path, offset + len(line) - len(error.object) + error.start) from error
        offset += len(line)
        if not text.strip():
            continue
        place = f"line {number} of {path}"
        yield _fields(json_row(text, place), fields, place)


def _json_list(stream: IO[bytes], path: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
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
        place = f"entry {number} of {path}"
        yield _fields(as_row(value, place), fields, place)


def _parquet(stream: IO[bytes], path: str, fields: Sequence[str]) -> Iterator[tuple[Any, ...]]:
    source = io.BytesIO(stream.read()) if _compression(path) else stream
    try:
        file = pyarrow.parquet.ParquetFile(source)
        for field in fields:
            if field not in file.schema_arrow.names:
                raise _no_field(str(path), field, file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches(columns=list(fields), batch_size=1024):
            for values in zip(*(batch.column(field).to_pylist() for field in fields), strict=True):
                number += 1
                yield _text(values[0], fields[0], f"row {number} of {path}"), *values[1:]
    except pyarrow.ArrowException as error:
        raise UserError(f"{path} is not a readable Parquet file ({error}); fetch or write it again") from error


def _fields(value: dict[str, Any], fields: Sequence[str], place: str) -> tuple[Any, ...]:
    for field in fields:
        if field not in value:
            raise _no_field(place, field, list(value))
    return _text(value[fields[0]], fields[0], place), *(value[field] for field in fields[1:])


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
