"""A folder of files as a search index: text, Markdown, HTML, PDF and JSON lines."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from minnow.agent.index import PageIndex, SearchIndex
from minnow.agent.pages import Page, PageError, page_of
from minnow.agent.tantivy_index import TantivyIndex
from minnow.data.documents import open_file
from minnow.errors import UserError

_PLAIN, _LINES = (".txt", ".md"), (".jsonl", ".jsonl.gz", ".jsonl.xz")
KINDS = (*_PLAIN, ".html", ".htm", ".pdf", *_LINES)
_TITLES, _TEXTS, _IDS = ("title", "name", "country"), ("text", "content", "context", "body", "factbook"), ("id", "url")


def index_folder(
    folder: Path, out: Path | None = None, skipped: list[str] | None = None, fast: bool = False
) -> PageIndex:
    """Index the files of a folder and of those in it, or one file; a page per file, or per line of JSON lines.

    Args:
        out: the index file; without one it is in memory.
        skipped: gets a sentence for each file that holds no text.
        fast: ``out`` is a folder that tantivy searches.

    Raises:
        UserError: no folder, no file of these kinds, or a line of JSON that is none.
    """
    if not folder.exists():
        raise UserError(f"there is no folder {folder} to search; check the path")
    files = [folder] if folder.is_file() else sorted(file for file in folder.rglob("*") if file.is_file())
    files = [file for file in files if file.name.lower().endswith(KINDS)]
    if not files:
        raise UserError(f"{folder} holds no file to search; it takes {', '.join(KINDS)}")
    root = folder.parent if folder.is_file() else folder
    pages = _pages(files, root, [] if skipped is None else skipped)
    return TantivyIndex.build(pages, out) if fast and out is not None else SearchIndex.build(pages, out)


def open_index(path: Path) -> PageIndex:
    """An index that ``minnow index`` wrote, or a folder (or one file of pages), indexed in memory.

    Raises:
        UserError: as :meth:`SearchIndex.open`, :class:`TantivyIndex` and :func:`index_folder`.
    """
    if TantivyIndex.here(path):
        return TantivyIndex(path)
    if path.is_file() and not path.name.lower().endswith(KINDS):
        return SearchIndex.open(path)
    return index_folder(path)


def read_page(file: Path, name: str) -> Page:
    """A file, but JSON lines, as the page ``name``.

    Raises:
        PageError: as :func:`page_of`.
        UserError: it cannot be read, or is a PDF and pypdf is not installed.
    """
    try:
        body = file.read_bytes()
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror or error}; check the path and its rights") from error
    return page_of(name, body, "text/plain" if file.suffix.lower() in _PLAIN else "")


def _pages(files: list[Path], root: Path, skipped: list[str]) -> Iterator[tuple[str, str, str]]:
    for file in files:
        name = file.relative_to(root).as_posix()
        if file.name.lower().endswith(_LINES):
            yield from _rows(file, name)
            continue
        try:
            page = read_page(file, name)
        except PageError as error:
            skipped.append(f"{file}: {error}")
            continue
        if page.text:
            # A text's name says what it is about as often as its first line does.
            yield (
                name,
                file.stem if page.title == name or file.suffix.lower() in _PLAIN else page.title,
                page.text,
            )
        else:
            skipped.append(f"{file}: it is empty.")


def _rows(file: Path, name: str) -> Iterator[tuple[str, str, str]]:
    with open_file(file) as stream:
        for number, line in enumerate(stream, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise UserError(f"line {number} of {file} is not JSON ({error}); correct or remove it") from error
            text = _first(row, _TEXTS) if isinstance(row, dict) else None
            if text is None:
                raise UserError(f"line {number} of {file} has no text; it takes one of {', '.join(_TEXTS)}")
            identity = _first(row, _IDS) or f"{name}#{number}"
            yield identity, _first(row, _TITLES) or identity, text


def _first(row: dict[str, Any], names: tuple[str, ...]) -> str | None:
    return next((str(row[name]) for name in names if isinstance(row.get(name), (str, int)) and str(row[name])), None)
