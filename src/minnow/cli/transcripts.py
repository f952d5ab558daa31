"""Transcripts that a command judges one by one: JSONL rows, a plain text, or standard input."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from minnow.errors import UserError
from minnow.files import json_row


@dataclass(frozen=True)
class Transcript:
    """``output``: text or token ids. ``id``: the row's own, or its line number."""

    id: Any
    output: str | list[int]
    finish_reason: str | None = None
    max_tokens: int | None = None


def transcripts(file: Path, field: str) -> Iterator[Transcript]:
    """The rows of a JSONL file as they are read, or the whole of any other file as one text; ``-`` is standard input.

    A file is JSONL when its first line that is not blank begins with ``{``. Bytes that are not UTF-8, such as a
    character cut in two, become U+FFFD, and stderr says so.

    Raises:
        UserError: the file is missing, a folder or empty, or a row is malformed.
    """
    if str(file) == "-":
        yield from _read(sys.stdin.buffer, "standard input", field)
        return
    try:
        with file.open("rb") as opened:
            yield from _read(opened, str(file), field)
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; check the path") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a JSONL or text file") from error


def _read(opened: BinaryIO, name: str, field: str) -> Iterator[Transcript]:
    blank = b""
    rows = 0
    for number, line in enumerate(opened, start=1):
        if number == 1:
            line = line.removeprefix(b"\xef\xbb\xbf")
        if not rows and not line.strip():
            blank += line
            continue
        if not rows and not line.lstrip().startswith(b"{"):
            yield Transcript(1, _decoded(blank + line + opened.read(), name))
            return
        if line.strip():
            rows += 1
            yield _row(line, number, name, field)
    if not rows and not blank:
        raise UserError(f"{name} is empty; give JSONL rows or a text")
    if not rows:
        yield Transcript(1, _decoded(blank, name))


def _decoded(data: bytes, place: str) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        sys.stderr.write(f"{place} is not UTF-8 at byte {error.start}; such bytes are read as U+FFFD\n")
        return data.decode(errors="replace")


def _row(line: bytes, number: int, name: str, field: str) -> Transcript:
    place = f"line {number} of {name}"
    row = json_row(_decoded(line, place), place)
    text, tokens = row.get(field), row.get("tokens")
    output: str | list[int]
    if isinstance(text, str):
        output = text
    elif isinstance(tokens, list) and all(type(token) is int and 0 <= token < 2**31 for token in tokens):
        output = tokens
    else:
        raise UserError(
            f"{place} has neither text in {field!r} nor token ids in 'tokens'; write one of them, or name the field "
            "with --field"
        )
    reason, most = row.get("finish_reason"), row.get("max_tokens")
    if not isinstance(reason, str | None) or not (most is None or (type(most) is int and most > 0)):
        raise UserError(f"{place} has a finish_reason or max_tokens that is none; write a word and a positive number")
    return Transcript(row.get("id", number), output, reason, most)
