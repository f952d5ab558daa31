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


def guarded(
    source: Continues, guard: Guard, temperature: float = 0.0, begun: str = ""
) -> Iterator[str | Cut | GuardedText]:
    """The answer that ``source`` gives under the guard: its text as it comes, a :class:`Cut` wherever it is taken
    back, and at last the whole; arguments as of :class:`TextGuard`."""
    watching = TextGuard(guard, temperature, begun)
    while True:
        stream, reason = source(*watching.begin()), None
        while True:
            try:
                piece = next(stream)
            except StopIteration as ended:
                reason = str(ended.value)
                break
            yield piece
            if watching.push(piece):
                break
        stream.close()
        for event in watching.settle(reason):
            yield event
            if isinstance(event, GuardedText):
                return


class TextGuard:
    """What the guard makes of one answer, whoever streams it: ask the source for what :meth:`begin` says, ``push`` its
    pieces until that returns True or the source ends, ``settle``, and so on until that gives the whole.

    The guard's tokens (``stretch``, ``persistence``) are taken for four characters each.

    Args:
        temperature: asked for where the guard asks for no higher one.
        begun: the end of the prompt where that already opens a reasoning block.

    Attributes:
        text: the answer so far.
        floor: characters that cannot be taken back any more, because somebody has read them.
    """

    def __init__(self, guard: Guard, temperature: float = 0.0, begun: str = "") -> None:
        self._guard, self._temperature, self._begun = guard, temperature, begun
        self.text, self.floor, self.rewinds, self.discarded = "", 0, 0, 0
        self._warm_until, self._warm = 0, False
        self._banned: dict[int, tuple[str, ...]] = {}
        self._loop: Loop | None = None

    def begin(self) -> tuple[str, float, tuple[str, ...]]:
        """What the source is to continue and how: the arguments of :class:`Continues`."""
        self._watch = TextWatch(_CHECK_EVERY, CHARACTERS_A_TOKEN * self._guard.persistence, self.text)
        self._warm, self._loop = len(self.text) < self._warm_until, None
        temperature = max(self._temperature, self._guard.temperature) if self._warm else self._temperature
        return self.text, temperature, self._banned.get(len(self.text), ())

    def push(self, piece: str) -> bool:
        """Take what the source says; True where its stream is to be closed and settled."""
        self.text += piece
        self._loop = self._watch.push(piece)
        return self._loop is not None or (self._warm and len(self.text) >= self._warm_until)

    def settle(self, reason: str | None) -> list[str | Cut | GuardedText]:
        """After a stream that ended for ``reason``, or was closed (None): what has become of the answer.

        The whole, last of all; a :class:`Cut`, with the end of a reasoning block where that is closed; or nothing,
        where the answer only goes on at another temperature.
        """
        loop = self._watch.finish() if reason == "length" else self._loop
        if loop is None and reason is None:
            return []
        if loop is None or self.rewinds == self._guard.rewinds:
            ended = "loop" if loop is not None else str(reason)
            return [GuardedText(self.text, ended, self.rewinds, self.discarded, loop)]
        self.rewinds, place = self.rewinds + 1, max(loop.onset, min(self.floor, len(self.text)))
        self.discarded += len(self.text) - place
        self._banned = {at: texts for at, texts in self._banned.items() if at <= place}
        if forbidden := self.text[place : place + _BANNED_CHARACTERS]:
            self._banned[place] = (*self._banned.get(place, ()), forbidden)
        self.text, self._warm_until = self.text[:place], 0
        events: list[str | Cut | GuardedText] = [Cut(place)]
        if self._guard.closes(self.rewinds, self._begun + self.text):
            self.text += self._guard.closing
            events.append(self._guard.closing)
        elif tokens := self._guard.warm_tokens(self.rewinds):
            self._warm_until = place + CHARACTERS_A_TOKEN * tokens
        return events
