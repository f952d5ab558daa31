"""What a conversation leaves out when it outgrows the context."""

from __future__ import annotations

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
    kept = list(messages)
    for droppable in (_is_talk, _is_not_system):
        while count(kept) > room:
            oldest = _oldest(kept, droppable)
            if not oldest:
                break
            kept = [message for place, message in enumerate(kept) if place not in oldest]
    if (needed := count(kept)) > room:
        raise ApiError(
            400,
            f"the prompt needs {needed} tokens and at most {room} fit; shorten the last message",
            "context_length_exceeded",
            "messages",
        )
    return kept


def _oldest(messages: list[Message], droppable: Callable[[Message], bool]) -> set[int]:
    """The places of what may go of the oldest exchange but the last that has any."""
    begins = [place for place, message in enumerate(messages) if message["role"] == "user"]
    for begin, end in pairwise([0, *begins]):
        if places := {place for place in range(begin, end) if droppable(messages[place])}:
            return places
    return set()


def _is_talk(message: Message) -> bool:
    return message["role"] in ("user", "assistant") and CALL_START not in message["content"]


def _is_not_system(message: Message) -> bool:
    return message["role"] != "system"
