"""What a conversation leaves out."""

from __future__ import annotations

import pytest

from minnow.data.calls import CALL_END, CALL_START
from minnow.serve.errors import ApiError
from minnow.serve.trimming import Message, trimmed

CALL = f"{CALL_START}[find(q=1)]{CALL_END}"
TALK = [
    {"role": "system", "content": "rules"},
    {"role": "user", "content": "first"},
    {"role": "assistant", "content": "one"},
    {"role": "user", "content": "second"},
    {"role": "assistant", "content": CALL},
    {"role": "tool", "content": "found"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "third"},
]


def kept(room: int) -> list[str]:
    return [message["content"] for message in trimmed(TALK, len, room)]


def test_talk_goes_first_then_calls_with_their_results_never_the_system_or_the_last_question() -> None:
    def count(messages: list[Message]) -> int:
        return len(messages)

    assert trimmed(TALK, count, 8) == TALK
    assert kept(7) == ["rules", "second", CALL, "found", "two", "third"]
    assert kept(5) == ["rules", CALL, "found", "third"]
    assert kept(3) == ["rules", "third"]
    with pytest.raises(ApiError, match="shorten the last message"):
        kept(1)


def test_calls_go_an_exchange_at_a_time_and_a_long_talk_is_counted_a_few_times() -> None:
    again = [*TALK[:-1], {"role": "user", "content": "again"}, *TALK[4:7], TALK[-1]]
    assert [message["content"] for message in trimmed(again, len, 5)] == ["rules", CALL, "found", "third"]
    counted = []

    def count(messages: list[Message]) -> int:
        counted.append(len(messages))
        return len(messages)

    assert len(trimmed([*TALK[1:3] * 1000, TALK[-1]], count, 101)) == 101
    assert len(counted) < 20
