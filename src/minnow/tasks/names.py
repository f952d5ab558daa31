"""Names built from syllables, and the rule that keeps the two splits apart.

A name belongs to exactly one split by a checksum of its letters, so whatever invents a name at
any place of the world can never let a held-out name into training text.
"""

from __future__ import annotations

import zlib
from random import Random

from minnow.tasks.types import Split

INITIAL = (
    "Al Ar Bal Bel Bor Bra Cal Cor Dal Dor Dra El Fal Fen Gal Gor Hal Hel Il Jor Kal Kel Kor Lan Lor Mal Mar Mel Mir "
    "Mor Nal Nor Ol Or Pal Per Quin Ral Ren Ros Sal Sel Sor Tal Tar Tel Tol Tor Ul Ur Val Vel Vor Wal Wen Yar Yor Zan "
    "Zel Zor"
).split()
MIDDLE = (
    "ba be bi bo da de di do fa fi ga go ka ke ki ko la le li lo ma me mi mo na ne ni no ra ri ro sa se si so ta te ti "
    "to va"
).split()
FINAL = (
    "bar ben bin dan den din dor fan gan gar han kan kas ken lan len lin lor lun mar men mir mon mus nar nas nel nia "
    "nor ra ran ren ria ris ron rus san sar sia ska tan tar ten tis ton tra van var via vor"
).split()
GIVEN = tuple(first + last for first in INITIAL[::2] for last in ("a", "en", "is", "o"))

_HELD_OUT_SHARE = 5  # one in five


def split_of(text: str) -> Split:
    """The split that a name or a prompt belongs to; the same in every world."""
    return "held_out" if zlib.crc32(text.encode()) % _HELD_OUT_SHARE == 0 else "train"


def _pick(rng: Random, items: list[str] | tuple[str, ...]) -> str:
    return items[int(rng.random() * len(items))]


def _word(rng: Random) -> str:
    middles = rng.random()
    name = _pick(rng, INITIAL)
    if middles > 0.25:
        name += _pick(rng, MIDDLE)
    if middles > 0.92:
        name += _pick(rng, MIDDLE)
    return name + _pick(rng, FINAL)


def place_name(rng: Random, split: Split) -> str:
    """One word of two to four syllables, such as "Velmodan", from ``split``."""
    while True:
        name = _word(rng)
        if split_of(name) == split:
            return name


def person_name(rng: Random, split: Split) -> str:
    """A given name and a surname, such as "Tala Corbidan", from ``split``."""
    while True:
        name = f"{_pick(rng, GIVEN)} {_word(rng)}"
        if split_of(name) == split:
            return name
