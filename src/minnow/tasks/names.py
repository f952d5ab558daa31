"""Names built from syllables, and the rule that keeps the two splits apart.

Every name has two words, the first from a short fixed list. A tokenizer that joins a word with the
space before it writes a bare first word otherwise than one inside a sentence; with a fixed list that
is a few dozen pairs to learn, and the invented second word is the same tokens wherever the name
stands, so copying a name into JSON or a tool call is plain copying.

A name belongs to exactly one split by a checksum of its letters, so whatever invents a name at
any place of the world can never let a held-out name into training text.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

from minnow.tasks.types import Split


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACE_FIRST = _words(
    "Al Bal Bel Ben Bor Cal Car Dal Dor Dun El Fal Fen Fort Gal Glen Hal Hel Kal Kel Kin Lan Las Lor Mal Mar Mel Mon "
    "Nal Nor Ol Os Pal Per Pol Port Ral Ras Ros Sal San Sel Sor Tal Tel Tor Ul Val Vel Ver Vor Wal Wen Yor Zan Zel"
)
GIVEN = _words(
    "Ada Alma Anna Axel Bela Bruno Clara Cleo Dana Dora Edna Eli Elsa Emil Enzo Eva Finn Flora Greta Hugo Ida Igor "
    "Ines Iris Ivan Jana Jonas Kira Lara Lena Leo Lina Luca Lydia Mara Max Mila Mina Nadia Nils Nina Nora Olga Oscar "
    "Otto Pavel Petra Rafa Rita Rosa Ruben Sara Sven Tara Theo Tina Ugo Vera Viktor Yara"
)
_INITIAL = _words(
    "Al Ar Bal Bel Bor Bra Cal Cor Dal Dor Dra El Fal Fen Gal Gor Hal Hel Il Jor Kal Kel Kor Lan Lor Mal Mar Mel Mir "
    "Mor Nal Nor Ol Or Pal Per Quin Ral Ren Ros Sal Sel Sor Tal Tar Tel Tol Tor Ul Ur Val Vel Vor Wal Wen Yar Yor Zan "
    "Zel Zor"
)
_MIDDLE = _words(
    "ba be bi bo da de di do fa fi ga go ka ke ki ko la le li lo ma me mi mo na ne ni no ra ri ro sa se si so ta te ti "
    "to va"
)
_FINAL = _words(
    "bar ben bin dan den din dor fan gan gar han kan kas ken lan len lin lor lun mar men mir mon mus nar nas nel nia "
    "nor ra ran ren ria ris ron rus san sar sia ska tan tar ten tis ton tra van var via vor"
)
_MIDDLE_SHARE = 0.5
_HELD_OUT_EVERY = 5  # checksums; one name or prompt in five is held out


def split_of(text: str) -> Split:
    """The split that a name or a prompt belongs to; the same in every world."""
    return "held_out" if zlib.crc32(text.encode()) % _HELD_OUT_EVERY == 0 else "train"


def place_name(rng: Random, split: Split, first: str | None = None) -> str:
    """The name of anything but a person, such as "Val Tormidan", from ``split``; ``first`` sets its first word."""
    return _name(rng, split, PLACE_FIRST if first is None else (first,))


def person_name(rng: Random, split: Split) -> str:
    """A given name and a surname, such as "Dana Corbidan", from ``split``."""
    return _name(rng, split, GIVEN)


def _name(rng: Random, split: Split, first: Sequence[str]) -> str:
    while True:
        name = f"{_pick(rng, first)} {_pick(rng, _INITIAL)}"
        if rng.random() < _MIDDLE_SHARE:
            name += _pick(rng, _MIDDLE)
        name += _pick(rng, _FINAL)
        if split_of(name) == split:
            return name


def _pick(rng: Random, items: Sequence[str]) -> str:
    return items[int(rng.random() * len(items))]  # several times faster than rng.choice
