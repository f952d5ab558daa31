"""The decoding guard: an answer that loops is taken back to the loop's onset and goes on from there in another way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from minnow.errors import UserError
from minnow.loops import Loop


@dataclass(frozen=True)
class Guard:
    """What is done about a loop: the answer keeps one copy of what it repeats and is continued from there.

    Each rewind of an answer does more than the one before. The first forbids the loop's first token at its onset; the
    second also draws the next ``stretch`` tokens at ``temperature``, each later one twice as many as the one before; from
    the third on, a reasoning block that is open there is closed instead. An answer that loops again after the last rewind
    ends with ``finish_reason`` "loop".

    Attributes:
        rewinds: of one answer, at most.
        temperature: of the draws after the second rewind and later ones, unless the sampling's own is higher.
        stretch: tokens drawn at it after the second rewind.
        persistence: how long a loop must have lasted (:func:`minnow.loops.has_lasted`) before the answer is taken back;
            at the end of the budget any loop is.
        opening, closing: what begins and ends a reasoning block.
    """

    rewinds: int = 6
    temperature: float = 0.7
    stretch: int = 64
    persistence: int = 0
    opening: str = "<think>"
    closing: str = "</think>"

    def __post_init__(self) -> None:
        if self.rewinds < 1 or self.temperature <= 0 or self.stretch < 1 or self.persistence < 0:
            raise UserError(
                f"a guard with {self.rewinds} rewinds, temperature {self.temperature}, a stretch of {self.stretch} and "
                f"persistence {self.persistence} cannot work; use at least 1 rewind and 1 token, a temperature above 0 "
                "and no negative persistence"
            )

    def warm_tokens(self, rewinds: int) -> int:
        """How many tokens are drawn at the guard's temperature after the rewind that makes it ``rewinds``."""
        return self.stretch << (rewinds - 2) if rewinds >= 2 else 0

    def closes(self, rewinds: int, before: str) -> bool:
        """Whether the rewind that makes it ``rewinds`` closes a reasoning block that the text ``before`` leaves open."""
        return rewinds >= 3 and before.rfind(self.opening) > before.rfind(self.closing)


@dataclass
class Rewound:
    """What the guard has done to one answer so far, its places counted in tokens of the answer.

    Attributes:
        count: rewinds.
        discarded: tokens that were thrown away.
        banned: ids that must not come at a place.
        forced: the id that must come at a place.
        warm_until: places before it are drawn at the guard's temperature.
    """

    count: int = 0
    discarded: int = 0
    banned: dict[int, set[int]] = field(default_factory=dict)
    forced: dict[int, int] = field(default_factory=dict)
    warm_until: int = 0

    def back(self, tokens: list[int], loop: Loop) -> None:
        """Cut ``tokens`` to the loop's onset and forbid the id that stood there."""
        place = loop.onset
        self.count += 1
        self.discarded += len(tokens) - place
        self.banned = {at: ids for at, ids in self.banned.items() if at <= place}
        self.banned.setdefault(place, set()).add(tokens[place])
        self.forced = {}
        self.warm_until = min(self.warm_until, place)
        del tokens[place:]

    def close(self, place: int, closing: Sequence[int]) -> None:
        """Let the ids that end a reasoning block come at ``place``."""
        self.forced = dict(enumerate(closing, place))
