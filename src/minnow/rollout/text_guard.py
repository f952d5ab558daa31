"""The decoding guard in front of anything that streams text: llama.cpp, vLLM, a server behind an API.

The stream is watched (:class:`minnow.loops.TextWatch`) and cut where it loops; what remains is handed back as the
beginning of the answer, to be continued in another way.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Protocol

from minnow.loops import CHARACTERS_A_TOKEN, Loop, TextWatch
from minnow.rollout.guard import Guard

_BANNED_CHARACTERS = 32
_CHECK_EVERY = 16  # symbols


class Continues(Protocol):
    """Something that continues an answer."""

    def __call__(self, text: str, temperature: float, banned: tuple[str, ...]) -> Generator[str, None, str]:
        """Yield what follows ``text``, the answer so far, in pieces, and return why it ended (``"stop"``, ``"length"``).

        Args:
            banned: texts whose first token must not come next, for a server that can be told (``logit_bias``); one that
                cannot may leave them out. Empty but for the first token after a rewind.
        """
        ...


@dataclass(frozen=True)
class Cut:
    """The answer was taken back: of what has been yielded, the first ``length`` characters remain."""

    length: int


@dataclass(frozen=True)
class GuardedText:
    """A finished answer: its text, why it ended (``"loop"``: the guard gave up), how often it was taken back, the
    characters that were thrown away, and the loop it ends in."""

    text: str
    finish_reason: str
    rewinds: int
    discarded: int
    loop: Loop | None


def guard_text(source: Continues, guard: Guard, temperature: float = 0.0, begun: str = "") -> GuardedText:
    """The answer that ``source`` gives under the guard; see :func:`guarded`."""
    for event in guarded(source, guard, temperature, begun):
        if isinstance(event, GuardedText):
            return event
    raise AssertionError("the last event is the answer")


def guarded(
    source: Continues, guard: Guard, temperature: float = 0.0, begun: str = ""
) -> Iterator[str | Cut | GuardedText]:
    """The answer that ``source`` gives under the guard: its text as it comes, a :class:`Cut` wherever it is taken
    back, and at last the whole.

    The guard's tokens (``stretch``, ``persistence``) are taken for four characters each.

    Args:
        temperature: asked for where the guard asks for no higher one.
        begun: the end of the prompt where that already opens a reasoning block.
    """
    text, rewinds, discarded, warm_until = "", 0, 0, 0
    banned: dict[int, tuple[str, ...]] = {}
    warm_temperature = max(temperature, guard.temperature)
    while True:
        watch = TextWatch(_CHECK_EVERY, CHARACTERS_A_TOKEN * guard.persistence, text)
        warm = len(text) < warm_until
        stream = source(text, warm_temperature if warm else temperature, banned.get(len(text), ()))
        loop, reason = None, None
        while loop is None and not (warm and len(text) >= warm_until):
            try:
                piece = next(stream)
            except StopIteration as ended:
                reason = str(ended.value)
                loop = watch.finish() if reason == "length" else None
                break
            text += piece
            yield piece
            loop = watch.push(piece)
        stream.close()
        if loop is None and reason is None:
            continue  # the rest of the answer is drawn at its own temperature again
        if loop is None or rewinds == guard.rewinds:
            break
        rewinds, place = rewinds + 1, loop.onset
        discarded += len(text) - place
        banned = {at: texts for at, texts in banned.items() if at <= place}
        banned[place] = (*banned.get(place, ()), text[place : place + _BANNED_CHARACTERS])
        text, warm_until = text[:place], 0
        yield Cut(place)
        if guard.closes(rewinds, begun + text):
            text += guard.closing
            yield guard.closing
        elif tokens := guard.warm_tokens(rewinds):
            warm_until = place + CHARACTERS_A_TOKEN * tokens
    yield GuardedText(text, "loop" if loop is not None else str(reason), rewinds, discarded, loop)
