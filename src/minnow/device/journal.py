"""What was measured, by what was asked for, kept in a file."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


class Journal:
    """Results of slow work by what was asked for, one JSON line each; a line cut short by a crash is left out."""

    def __init__(self, file: Path) -> None:
        self._file = file
        file.parent.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, Any] = {}
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines() if file.exists() else []:
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue

    def keep(self, value: Any, *asked: Any) -> Any:
        """Write down that ``asked`` gave ``value``."""
        self._known[_key(asked)] = value
        whole = not self._file.exists() or self._file.read_bytes()[-1:] in (b"", b"\n")
        with self._file.open("a", encoding="utf-8") as file:
            file.write(
                ("" if whole else "\n") + json.dumps({"key": _key(asked), "asked": asked, "value": value}) + "\n"
            )
        return value

    def known(self, *asked: Any) -> Any:
        """What ``asked`` gave; None where it was not asked yet."""
        return self._known.get(_key(asked))


def _key(asked: Sequence[Any]) -> str:
    return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()[:16]
