"""Rows of finished work in a file that a killed process goes on with."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minnow.errors import UserError
from minnow.files import append_rows


class Journal:
    """Rows appended to ``path`` (JSONL), or kept in memory only where it is None.

    The first line says what the rows were made with; rows made with anything else are no part of the same work. A line
    that a kill cut short is taken away when the file is opened again.

    Raises:
        UserError: the file holds something else or was made with other settings, or cannot be read or written.
    """

    def __init__(self, path: Path | None, made_with: dict[str, Any]) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        made_with = json.loads(json.dumps(made_with))
        if path is None or not path.exists() or path.stat().st_size == 0:
            self._write([{"made_with": made_with}])
            return
        try:
            data = path.read_bytes()
            whole = data.rfind(b"\n") + 1
            head, *rows = [json.loads(line) for line in data[:whole].splitlines()] or [{"made_with": made_with}]
            before = head["made_with"]
            with path.open("r+b") as opened:
                opened.truncate(whole)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}); check the file and its rights") from error
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not what this command wrote; move it away or name another --out") from error
        changed = sorted(name for name in before.keys() | made_with.keys() if before.get(name) != made_with.get(name))
        if changed:
            raise UserError(
                f"{path} was made with {changed[0]} {before.get(changed[0])!r}, not {made_with.get(changed[0])!r}; repeat "
                "the command it was made with, delete it, or name another --out"
            )
        if not whole:
            self._write([head])
        self.rows = rows

    def append(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep rows; they are on the disk when this returns."""
        self.rows += rows
        self._write(rows)

    def _write(self, rows: Sequence[dict[str, Any]]) -> None:
        if self.path is not None:
            append_rows(self.path, rows)
