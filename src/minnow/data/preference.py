"""Preference data in TRL's formats: rows of a prompt, a chosen and a rejected answer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

from minnow.data.table import Faults, Row, read_rows
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError

ENDLESS = ("loop", "length")
"""Ways in which a rejected answer of ``minnow loops pairs`` did not end: no end token belongs behind it."""


@dataclass(frozen=True)
class Preference:
    """One row.

    Attributes:
        prompt: messages, or bare text that the answers continue.
        rejected_ends: whether the rejected answer came to its end.
        onset: the character of the rejected answer at which a loop begins, where the row says so.
    """

    prompt: list[dict[str, Any]] | str
    chosen: str
    rejected: str
    tools: list[dict[str, Any]] | None = None
    rejected_ends: bool = True
    onset: int | None = None

    def ids(self, words: Tokenizer) -> dict[str, Any]:
        """Token ids of ``prompt``, ``chosen`` and ``rejected``, its ``kind`` and the ``onset`` in tokens."""
        if isinstance(self.prompt, str):
            prompt, encode = [*words.begin, *words.encode(self.prompt)], words.encode
        else:
            prompt, encode = words.prompt(self.prompt, self.tools), words.encode_chat
        onset = None if self.onset is None else len(encode(self.rejected[: self.onset]))
        rejected = [*encode(self.rejected), *([words.eos_id] if self.rejected_ends else [])]
        return {
            "kind": "quality" if onset is None else "loop",
            "prompt": prompt,
            "chosen": [*encode(self.chosen), words.eos_id],
            "rejected": rejected,
            "onset": onset if onset is not None and onset < len(rejected) else None,
        }


def read_preferences(file: Path, faults: Faults | None = None) -> Iterator[Preference]:
    """The rows of a preference data set: JSONL, JSON or Parquet (:func:`minnow.data.table.read_rows`).

    ``chosen`` and ``rejected`` are texts, or lists with one assistant message; ``prompt`` is a text or messages, and may
    be left out where both answers repeat it (TRL's implicit prompts). ``tools`` and what ``minnow loops pairs`` knows of
    a rejected answer are read too; other columns are not.

    Raises:
        UserError: the file cannot be read; or, unless ``faults`` skips such rows, one lacks a column (which is named) or
            holds something else in it.
    """
    faults = faults or Faults()
    yield from faults.usable(_preference, read_rows(file, faults))


def _preference(row: Row) -> Preference:
    values = row.values
    missing = [name for name in ("chosen", "rejected") if values.get(name) is None]
    if missing:
        has = ", ".join(values) or "nothing"
        raise UserError(
            f"{row.place} has no {' and no '.join(map(repr, missing))}, only {has}; preference data has the columns prompt, "
            "chosen and rejected"
        )
    prompt, chosen, rejected = values.get("prompt"), values["chosen"], values["rejected"]
    if prompt is None:
        prompt, chosen, rejected = _implicit(row, chosen, rejected)
    said = _answer(row, "chosen", chosen, prompt), _answer(row, "rejected", rejected, prompt)
    if said[0] == said[1]:
        raise UserError(f"{row.place} has equal answers in 'chosen' and 'rejected'; remove it")
    onset = values.get("rejected_onset_character")
    return Preference(
        prompt,
        *said,
        values.get("tools"),
        values.get("rejected_finish") not in ENDLESS,
        onset if isinstance(onset, int) else None,
    )


def _implicit(row: Row, chosen: Any, rejected: Any) -> tuple[Any, Any, Any]:
    """The prompt that both answers begin with: equal messages, or equal text up to the end of a word."""
    if type(chosen) is not type(rejected) or not isinstance(chosen, list | str):
        raise UserError(f"{row.place} has no 'prompt', and its answers are not of one form; write a prompt")
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    if isinstance(chosen, str):
        shared = chosen.rfind(" ", 0, shared) if " " in chosen[:shared] else 0
    if shared <= 0:
        raise UserError(f"{row.place} has no 'prompt', and its answers do not begin alike; write a prompt")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def _answer(row: Row, name: str, value: Any, prompt: Any) -> str:
    if isinstance(prompt, str) and isinstance(value, str):
        return value
    chat = isinstance(prompt, list) and prompt and all(isinstance(each, dict) for each in prompt)
    if chat and isinstance(value, list) and len(value) == 1 and isinstance(value[0], dict):
        content = value[0].get("content")
        if value[0].get("role") == "assistant" and isinstance(content, str):
            return content
    raise UserError(
        f"{row.place} holds in {name!r} neither text after a prompt of text nor one assistant message after messages; "
        "split conversations of several turns into one row for each answer"
    )
