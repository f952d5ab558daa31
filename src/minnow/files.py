"""Files and folders that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from minnow.errors import UserError


def cache_folder() -> Path:
    """Minnow's folder among what the user's programs may keep and lose."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "minnow"


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Say in a sentence what keeps ``path`` from being written.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise UserError(
            f"could not write {path}: {error.strerror or error}; free some space or choose another folder, "
            "then run the same command again (what was there before is untouched)"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path``; on success it replaces ``path``, on failure it goes.

    Raises:
        UserError: as :func:`writing`.
    """
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            yield temporary
            _sync(temporary)
            os.replace(temporary, path)
            _sync(path.parent)
    finally:
        # Gone after success, and unreachable where the parent is no folder: neither may hide what went wrong.
        with suppress(OSError):
            temporary.unlink()


_MARK = b"minnow-sha256:"


def seal(path: Path) -> None:
    """Add a checksum of a file to its end, which whoever reads a known number of bytes does not see."""
    with path.open("r+b") as file:
        file.write(_MARK + hashlib.file_digest(file, "sha256").digest())


def sealed(path: Path) -> bool:
    """Whether a file that was sealed is as it was: neither cut short nor a byte of it changed."""
    digest = hashlib.sha256()
    size = path.stat().st_size - len(_MARK) - digest.digest_size
    with path.open("rb") as file:
        for start in range(0, max(0, size), 1 << 20):
            digest.update(file.read(min(1 << 20, size - start)))
        return file.read() == _MARK + digest.digest()


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside ``path``; on success it replaces ``path``, on failure it goes.

    Raises:
        UserError: as :func:`writing`.
    """
    mark = uuid.uuid4().hex[:8]
    temporary = path.with_name(f".{path.name}.{mark}.tmp")
    previous = path.with_name(f".{path.name}.{mark}.old")
    try:
        with writing(path):
            temporary.mkdir(parents=True)
            yield temporary
            for file in temporary.rglob("*"):
                if file.is_file():
                    _sync(file)
            if path.exists():
                os.replace(path, previous)
            os.replace(temporary, path)
            _sync(path.parent)
            shutil.rmtree(previous, ignore_errors=True)
    finally:
        # Whatever came between the two renames, Ctrl-C included, what was there before stands again.
        if previous.exists() and not path.exists():
            os.replace(previous, path)
        shutil.rmtree(temporary, ignore_errors=True)


def write_text(path: Path, text: str) -> None:
    """Write ``text``; the file appears whole or not at all."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Write ``value`` as indented JSON; the file appears whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def append_rows(path: Path, rows: Iterable[Any]) -> None:
    """Add rows to a file of JSON lines; they are on the disk when this returns.

    Raises:
        UserError: as :func:`writing`.
    """
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as opened:
            opened.write(lines.encode("utf-8", "backslashreplace"))  # half a surrogate pair as its escape
            opened.flush()
            os.fsync(opened.fileno())


def read_json(path: Path) -> Any:
    """Read one JSON document.

    Raises:
        UserError: the file is missing or is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path} does not exist; check the path or run the stage that writes it") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid JSON ({error}); restore it or delete it and run again") from error


def json_row(text: str, place: str) -> dict[str, Any]:
    """The object that a line of JSON is; UserError with its ``place`` where it is none."""
    try:
        return as_row(json.loads(text), place)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place} is not JSON ({error}); correct or remove it") from error


def as_row(value: Any, place: str) -> dict[str, Any]:
    """``value``; UserError with its ``place`` where it is no object."""
    if not isinstance(value, dict):
        raise UserError(f"{place} is not an object but {json.dumps(value, ensure_ascii=False)[:40]}; write {{…}}")
    return value


def whole_pairs(text: str) -> str:
    """``text`` with a replacement character for each half of a surrogate pair, which is valid JSON, and no text."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
