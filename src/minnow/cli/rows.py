"""Rows of a JSONL file that a command reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from minnow.errors import UserError


def read_rows(file: Path) -> list[tuple[int, dict[str, Any]]]:
    """The objects of a JSONL file with their line numbers, blank lines left out.

    Raises:
        UserError: the file is missing, a folder, not UTF-8, holds no rows, or a line is no JSON object.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UserError(f"{file} does not exist; check the path") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} is not UTF-8 text at byte {error.start}; convert it, for example with "
            "`iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW`"
        ) from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror}); name a JSONL file") from error
    rows = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except ValueError as error:
            raise UserError(f"line {number} of {file} is not JSON ({error}); correct or remove it") from error
        if not isinstance(row, dict):
            raise UserError(f"line {number} of {file} is not an object but {type(row).__name__}; write {{…}}")
        rows.append((number, row))
    if not rows:
        raise UserError(f"{file} holds no rows; give a file with one JSON object per line")
    return rows
