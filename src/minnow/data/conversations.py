"""Conversations to fine-tune on, in the formats of the hub and of TRL, and their ids with completion masks."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.data.calls import Call, render_call, render_calls
from minnow.data.foreign_tokenizer import ForeignTokenizer
from minnow.data.table import Faults, Row, read_rows
from minnow.data.tokenizer import Tokenizer
from minnow.errors import UserError

Message = dict[str, Any]
Tokenised = tuple[NDArray[np.int32], NDArray[np.bool_]]
"""Ids of a conversation and, of the same length, which of them are trained."""


@dataclass(frozen=True)
class Conversation:
    """One row.

    Attributes:
        place: names it in errors.
        messages: with ``role`` and ``content``; an assistant's may have ``tool_calls`` in OpenAI's form, their arguments
            as objects.
        difficulty: the row's number of that name, for training from easy to hard.
    """

    place: str
    messages: Sequence[Message]
    tools: list[dict[str, Any]] | None = None
    difficulty: float | None = None

    @property
    def text(self) -> str:
        """All that is said."""
        return "\n".join(str(each.get("content") or "") for each in self.messages)

    def tokenised(self, words: Tokenizer) -> Tokenised:
        """Ids and completion mask; every assistant turn is trained, calls included.

        Raises:
            UserError: it cannot be put in the chat format, or nothing of it would be trained.
        """
        messages = self.messages if isinstance(words, ForeignTokenizer) else list(map(_with_calls, self.messages))
        try:
            ids, mask = words.conversation(messages, self.tools)
        except UserError as error:
            raise UserError(f"{self.place}: {error}") from error
        if not any(mask):
            raise UserError(
                f"{self.place} has no token to train on: it holds no assistant turn, or the chat template shows none; "
                "correct the row or the template"
            )
        return np.asarray(ids, np.int32), np.asarray(mask, bool)


def _with_calls(message: Message) -> Message:
    """A message whose calls stand in its text, as LFM2 writes them."""
    calls = message.get("tool_calls")
    if not calls:
        return message
    made = [Call(each["function"]["name"], each["function"]["arguments"]) for each in calls]
    return {"role": message["role"], "content": render_calls(made) + message["content"]}


def read_conversations(file: Path, faults: Faults | None = None) -> Iterator[Conversation]:
    """The rows of a file (:func:`minnow.data.table.read_rows`): ``messages``, or ``prompt`` and ``completion``.

    These are messages or texts; ``tools`` is a list, or JSON of one. Other columns are not read.

    Raises:
        UserError: the file cannot be read; or, unless ``faults`` skips such rows, one is malformed.
    """
    faults = faults or Faults()
    yield from faults.usable(_conversation, read_rows(file, faults))


def _conversation(row: Row) -> Conversation:
    values = row.values
    if values.get("messages") is not None:
        given = values["messages"]
    elif values.get("prompt") is not None and values.get("completion") is not None:
        given = [*_turns(values["prompt"], "user"), *_turns(values["completion"], "assistant")]
    else:
        has = ", ".join(values) or "nothing"
        raise UserError(
            f"{row.place} has neither 'messages' nor 'prompt' and 'completion', only {has}; write one of them"
        )
    if not (isinstance(given, list) and given):
        raise UserError(f"{row.place} holds no list of messages; write [{{role, content}}, …]")
    messages = [_message(row, number, each) for number, each in enumerate(given)]
    if all(each["role"] != "assistant" for each in messages):
        raise UserError(f"{row.place} has no assistant message, so nothing in it can be trained; add the answer")
    difficulty = values.get("difficulty")
    if difficulty is not None and (isinstance(difficulty, bool) or not isinstance(difficulty, int | float)):
        raise UserError(f"{row.place} has a 'difficulty' that is no number; write one or leave it out")
    return Conversation(row.place, messages, _tools(row), difficulty)


def _turns(given: Any, role: str) -> list[Any]:
    return (
        [{"role": role, "content": given}] if isinstance(given, str) else given if isinstance(given, list) else [given]
    )


def _message(row: Row, number: int, given: Any) -> Message:
    where = f"message {number} of {row.place}"
    if not isinstance(given, dict) or not isinstance(given.get("role"), str):
        raise UserError(f"{where} has no 'role'; write {{role, content}}")
    calls, content = given.get("tool_calls"), given.get("content")
    if calls:
        try:
            given = given | {"tool_calls": [{**each, "function": _function(each["function"])} for each in calls]}
        except (TypeError, KeyError, ValueError, RecursionError) as error:
            raise UserError(f"{where} has 'tool_calls' that cannot be read ({error}); use OpenAI's form") from error
        content = "" if content is None else content
    if not isinstance(content, str):
        raise UserError(f"{where} has no text in 'content'; write some, or 'tool_calls' in an assistant's")
    # Parquet gives every message every column; an empty one says nothing.
    return {key: value for key, value in given.items() if value is not None} | {"content": content}


def _function(given: Mapping[str, Any]) -> dict[str, Any]:
    arguments = given.get("arguments") or {}
    arguments = json.loads(arguments) if isinstance(arguments, str) else dict(arguments)
    render_call(given["name"], arguments)
    return {**given, "arguments": arguments}


def _tools(row: Row) -> list[dict[str, Any]] | None:
    tools = row.values.get("tools")
    try:
        tools = json.loads(tools) if isinstance(tools, str) and tools else tools
    except (ValueError, RecursionError) as error:
        raise UserError(f"{row.place} has 'tools' that are no JSON ({error}); write a list of functions") from error
    if not tools:
        return None
    if not (isinstance(tools, list) and all(isinstance(each, dict) for each in tools)):
        raise UserError(f"{row.place} has 'tools' that are no list of functions; correct or remove them")
    return tools
