"""What a conversation leaves out when it outgrows the context."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

from minnow.data.calls import CALL_START
from minnow.serve.errors import ApiError

Message = dict[str, Any]


def trimmed(messages: Sequence[Message], count: Callable[[list[Message]], int], room: int) -> list[Message]:
    """The messages that fit ``room`` tokens, by ``count``.

    System messages and everything from the last user message on always stay. The oldest exchanges go first, of these
    first the plain talk: tool calls and their results stay as long as they can, and always together.

    Raises:
        ApiError: 400, what must stay does not fit.
    """
    if count(list(messages)) <= room:
        return list(messages)
    begins = [place for place, message in enumerate(messages) if message["role"] == "user"]
    exchanges = list(pairwise([0, *begins]))
    drops = [
        {place for place in range(begin, end) if droppable(messages[place])}
        for droppable in (_is_talk, _is_not_system)
        for begin, end in exchanges
    ]

    def without(first: int) -> list[Message]:
        gone = set().union(*drops[:first])
        return [message for place, message in enumerate(messages) if place not in gone]

    # To count is to tokenise, so the fewest drops that suffice are searched by halves.
    fewest = bisect_left(range(len(drops)), True, key=lambda first: count(without(first)) <= room)
    kept = without(fewest)
    if (needed := count(kept)) > room:
        raise ApiError(
            400,
            f"the prompt needs {needed} tokens and at most {room} fit; shorten the last message",
            "context_length_exceeded",
            "messages",
        )
    return kept


def _is_talk(message: Message) -> bool:
    return message["role"] in ("user", "assistant") and CALL_START not in message["content"]


def _is_not_system(message: Message) -> bool:
    return message["role"] != "system"
