"""Names of two words, and the rule that keeps the two splits apart.

Both words come from fixed lists, so that the vocabulary of a small model holds each of them whole and copying a name
into JSON or a tool call is plain copying; there are tens of thousands of names, far more than such a model can know
anything about.

A name belongs to exactly one split by a checksum of its letters, so whatever invents a name at any place of the world
can never let a held-out name into training text, though both splits use the same words.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from random import Random

from minnow.tasks.types import Split


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


PLACE_FIRST = _words(
    "Al Ald Am Ash Bal Bel Ben Ber Bor Bran Cal Car Col Corn Cran Dal Den Dor Dun Ed El Elm Fal Far Fen Fol Fort Gal "
    "Gil Glen Gor Gran Hal Ham Har Hel Hol Hun Kal Kar Kel Ken Kin Kor Lan Las Lin Lor Lun Mal Mar Mel Mid Mon Mul Nal "
    "Nel Nor Nun Ol Or Os Pal Pel Pen Per Pol Port Ral Ram Ras Ros Rud Sal San Sel Shel Sol Sor Stan Tal Tam Tel Thor "
    "Tor Tun Ul Val Vel Ver Vor Wal Wen Win Wol Yar Yor Zan Zel"
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
_FINAL = _words(
    "bar ben bin dan den din dor fan gan gar han kan kas ken lan len lin lor lun mar men mir mon mus nar nas nel nia "
    "nor ra ran ren ria ris ron rus san sar sia ska tan tar ten tis ton tra van var via vor"
)
SECOND = tuple(Random("second words").sample([first + last for first in _INITIAL for last in _FINAL], 400))
"""Second words of all names: few enough that a small tokenizer writes each as one token."""
_HELD_OUT_EVERY = 5  # checksums; one name or prompt in five is held out


def split_of(text: str) -> Split:
    """The split that a name or a prompt belongs to; the same in every world."""
    return "held_out" if zlib.crc32(text.encode()) % _HELD_OUT_EVERY == 0 else "train"


def place_name(rng: Random, split: Split) -> str:
    """The name of anything but a person, such as "Val Tordan", from ``split``."""
    return _name(rng, split, PLACE_FIRST)


def person_name(rng: Random, split: Split) -> str:
    """A given name and a surname, such as "Dana Corvan", from ``split``."""
    return _name(rng, split, GIVEN)


def _name(rng: Random, split: Split, first: Sequence[str]) -> str:
    while True:
        name = f"{_pick(rng, first)} {_pick(rng, SECOND)}"
        if split_of(name) == split:
            return name


def _pick(rng: Random, items: Sequence[str]) -> str:
    return items[int(rng.random() * len(items))]  # several times faster than rng.choice
