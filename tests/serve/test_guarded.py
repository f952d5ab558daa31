"""Loops in a stream: what reaches the reader."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import pytest

from minnow.loops import find_text_loop
from minnow.rollout import Guard
from minnow.serve.bodies import Ask
from minnow.serve.guarded import HoldBack, Taken, guard_stream
from minnow.serve.source import Ended, Piece, Prompt, Turn

START = "The mill stands by the river. "
PROSE = "She came down from the hills in autumn, sold two sheep, bought salt and went home before it snowed."


class Looping:
    """Says its start and goes round, until something is forbidden or it is warm; ``deaf`` to both for ever."""

    name, slots, enforces = "looping", 1, True

    def __init__(self, period: str, deaf: bool = False, budget: int = 6000) -> None:
        self.period, self.deaf, self.budget = period, deaf, budget
        self.turns: list[Turn] = []

    async def close(self) -> None: ...

    async def prepare(self, ask: Ask) -> Prompt:
        return Prompt(ask, 100)

    async def stream(self, prompt: Prompt, turn: Turn) -> AsyncGenerator[Piece | Ended]:
        self.turns.append(turn)
        if not turn.text:
            yield Piece(START)
        if (turn.banned or turn.temperature > 0) and not self.deaf:
            yield Piece(PROSE)
            yield Ended("stop", 3, 0, 9)
            return
        at = len(turn.text.removeprefix(START))
        for place in range(at, self.budget, 5):
            yield Piece((self.period * (self.budget // len(self.period) + 2))[place : place + 5])
        yield Ended("length", 3, 0, 9)


def read(source: Looping, hold: int = 1000) -> tuple[str, list[Taken], Ended]:
    async def play() -> tuple[str, list[Taken], Ended]:
        text, taken, ended = "", [], Ended("none")
        prompt = await source.prepare(Ask({}, None))
        async for part in guard_stream(source, prompt, Turn("", 0.0, 1), Guard(), hold):
            if isinstance(part, Piece):
                text += part.text
            elif isinstance(part, Taken):
                taken.append(part)
            else:
                ended = part
        return text, taken, ended

    return asyncio.run(play())


@pytest.mark.parametrize("period", ["the old wheel turns and ", "round and round it goes, by night and by day. " * 3])
def test_the_reader_gets_one_copy_and_another_ending(period: str) -> None:
    text, taken, ended = read(Looping(period))
    assert text.startswith(START) and text.endswith(PROSE) and ended.reason == "stop"
    assert len(taken) == 1 and taken[0].characters > len(period)
    assert find_text_loop(text) is None
    assert len(text) <= len(START) + 2 * len(period) + len(PROSE)


def test_what_was_read_already_stays() -> None:
    period = PROSE + " Then winter came and the road was closed, so nobody saw her until the thaw. "
    text, taken, _ = read(Looping(period), hold=10)
    whole = read(Looping(period))[0]
    assert text.endswith(PROSE) and text.startswith(START + period) and len(text) > len(whole) and taken


def test_where_nothing_helps_the_loop_is_named_and_not_shown() -> None:
    text, taken, ended = read(Looping("the old wheel turns and ", deaf=True))
    assert ended.reason == "loop" and len(taken) == Guard().rewinds
    assert len(text) < 200


def test_new_text_is_never_held_and_repeats_are() -> None:
    back, text = HoldBack(), ""
    for word in PROSE.split(" "):
        text += word + " "
        assert back.push(word + " ") == len(text)
    first = len(text)
    assert back.push(PROSE[:60]) <= first + 1
    assert back.push(" but this time seven cold grey travellers followed quietly along") > first + 60
    counting = HoldBack()
    counting.push("Room 1 is free today. ")
    assert counting.push("Room 2 is free today. Room 3 is") < 30


def test_no_more_is_held_than_allowed() -> None:
    back = HoldBack(50)
    shown = [back.push("the old wheel turns and ") for _ in range(40)]
    assert shown[-1] == 40 * 24 - 50


def test_an_ordinary_answer_passes_piece_by_piece() -> None:
    source = Looping("x")
    source.stream = lambda prompt, turn: _said(PROSE.split(" "))  # type: ignore[method-assign,assignment]
    text, taken, ended = read(source)
    assert text == PROSE.replace(" ", "") and not taken and (ended.prompt_tokens, ended.completion_tokens) == (5, 6)


async def _said(words: list[str]) -> AsyncGenerator[Piece | Ended]:
    for word in words:
        yield Piece(word)
    yield Ended("stop", 5, 0, 6)
