"""The loop guard in a stream: what a reader has seen cannot be taken back, so what may be a loop is held back."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

from minnow.loops.symbols import NUMBER, read_text
from minnow.rollout.guard import Guard
from minnow.rollout.text_guard import Cut, TextGuard
from minnow.serve.source import Ended, Piece, Prompt, Source, Turn

_GRAM = 4  # symbols: words, numbers, marks
_FRESH = 8  # grams in a row that were not there before let the text go again


@dataclass(frozen=True)
class Taken:
    """A loop was caught: the answer was taken back for the ``rewinds``-th time, by ``characters``."""

    rewinds: int
    characters: int


class HoldBack:
    """How much of a growing text may be shown while a loop is still possible.

    Text goes out as it comes while it is new. Where groups of four symbols come that were there before, which is how
    every loop's second copy begins, it stops there, until eight groups in a row are new or ``most`` characters are held.
    Numbers count as equal, so that a counter's lines are no news.
    """

    def __init__(self, most: int = 1000) -> None:
        self._most = most
        self.reset("")

    def reset(self, text: str) -> None:
        """Begin with ``text``, which has been seen."""
        self._text, self._read = "", 0
        self._last: list[tuple[int, int]] = []  # symbol and place
        self._seen: dict[tuple[int, ...], None] = {}
        self._stale: int | None = None
        self._fresh = 0
        self.push(text)

    def push(self, piece: str) -> int:
        """Take more text; how many characters of the whole may be shown."""
        self._text += piece
        symbols = read_text(self._text)
        assert symbols.classes is not None and symbols.starts is not None
        for raw, kind, start in zip(
            symbols.raw.tolist(), symbols.classes.tolist(), symbols.starts.tolist(), strict=True
        ):
            if start >= symbols.held:
                break
            self._add(-1 if kind == NUMBER else raw, self._read + start)
        self._read += symbols.held
        self._text = self._text[symbols.held :]
        size = self._read + len(self._text)
        return size if self._stale is None else max(self._stale, size - self._most)

    def _add(self, symbol: int, place: int) -> None:
        self._last = [*self._last[1 - _GRAM :], (symbol, place)]
        if len(self._last) < _GRAM:
            return
        gram = tuple(each for each, _ in self._last)
        if gram in self._seen:
            self._fresh = 0
            if self._stale is None:
                self._stale = self._last[0][1]
        else:
            self._fresh += 1
            if self._fresh >= _FRESH:
                self._stale = None
        self._seen[gram] = None


async def guard_stream(
    source: Source, prompt: Prompt, turn: Turn, guard: Guard, hold: int = 1000
) -> AsyncGenerator[Piece | Taken | Ended]:
    """What ``source`` says after ``turn.text``, under the guard: only what stays, :class:`Taken` wherever a loop was caught, and last
    :class:`Ended`, whose reason is ``"loop"`` where the guard gave up.

    Args:
        hold: characters held back at most. Where a loop is found so late that more of it has been shown, the answer goes
            on from there.
    """
    watching, back = TextGuard(guard, turn.temperature), HoldBack(hold)
    # What there is of the answer has been read.
    watching.text, watching.floor = turn.text, len(turn.text)
    back.reset(turn.text)
    held: list[Piece] = []  # what has been said and not shown
    parts: list[Ended] = []
    while True:
        text, temperature, banned = watching.begin()
        # Other noise after a rewind: the same draws again would invite the same loop again.
        seed = turn.seed + (watching.rewinds << 16)
        stream, reason = source.stream(prompt, replace(turn, text=text, temperature=temperature, seed=seed, banned=banned)), None  # fmt: skip
        async with aclosing(stream):
            async for part in stream:
                if isinstance(part, Ended):
                    parts.append(part)
                    reason = part.reason
                    break
                held.append(part)
                shown = back.push(part.text)
                if watching.push(part.text):
                    break
                while held and watching.floor + len(held[0].text) <= shown:
                    watching.floor += len(held[0].text)
                    yield held.pop(0)
        thrown = watching.discarded
        for event in watching.settle(reason):
            if isinstance(event, Cut):
                held = _cut(held, event.length - watching.floor)
                yield Taken(watching.rewinds, watching.discarded - thrown)
                back.reset(watching.text)
            elif isinstance(event, str):
                held.append(Piece(event))
                back.push(event)
            else:
                keep = None if event.loop is None else max(0, event.loop.onset - watching.floor)
                for piece in held if keep is None else _cut(held, keep):
                    yield piece
                yield _whole(parts, watching.rewinds, event.finish_reason)
                return


def _cut(pieces: list[Piece], length: int) -> list[Piece]:
    """The pieces of the first ``length`` characters."""
    kept: list[Piece] = []
    for piece in pieces:
        if length <= 0:
            break
        if len(piece.text) > length:
            share = length / len(piece.text)
            tokens = round(piece.tokens * share)
            piece = Piece(piece.text[:length], tokens, piece.logprobs[:tokens])
        kept.append(piece)
        length -= len(piece.text)
    return kept


def _whole(parts: list[Ended], rewinds: int, reason: str) -> Ended:
    """The end of an answer; where it came in several streams, none of them can speak for the whole."""
    if not rewinds and len(parts) == 1:
        return replace(parts[0], reason=reason)
    return Ended(reason, calls=parts[-1].calls if parts else ())
