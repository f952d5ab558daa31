"""What to leave out of a corpus before it is tokenised: copies, and what evaluation sets hold."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from minnow.data.duplicates import words_of
from minnow.data.table import read_rows
from minnow.errors import UserError

Rule = Callable[[str], bool]
"""Whether a text is to be left out, given all that were asked about before."""

FEWEST_WORDS = 8
"""Of an evaluation text; shorter ones are everywhere (GPT-3's lower limit, arXiv 2005.14165, appendix C)."""


def copies() -> Rule:
    """Texts whose words, in order, were all there before."""
    seen: set[bytes] = set()

    def rule(text: str) -> bool:
        digest = hashlib.sha256(" ".join(words_of(text)).encode()).digest()[:16]
        known = digest in seen
        seen.add(digest)
        return known

    return rule


def contaminated(evaluation: Iterable[str], length: int = 13, common: int | None = None) -> Rule:
    """Texts that share ``length`` words in a row with an evaluation text, or all words of one that has fewer.

    Args:
        common: words in a row that more than so many different evaluation texts share are their form, and are cut out of
            them before.

    Raises:
        UserError: ``length`` is below :data:`FEWEST_WORDS`, or no evaluation text has so many words.
    """
    if length < FEWEST_WORDS:
        raise UserError(f"runs of {length} words are everywhere; use at least {FEWEST_WORDS}")
    texts = map(words_of, evaluation)
    runs: dict[int, set[str]] = {}
    for words in texts if common is None else _without_form(texts, length, common):
        size = min(length, len(words))
        if size >= FEWEST_WORDS:
            runs.setdefault(size, set()).update(_runs(words, size))
    if not runs:
        raise UserError(
            f"no evaluation text has {FEWEST_WORDS} words, so none can be told from chance; give other files"
        )

    def rule(text: str) -> bool:
        words = words_of(text)
        return any(run in known for size, known in runs.items() for run in _runs(words, size))

    return rule


def _without_form(texts: Iterable[list[str]], length: int, common: int) -> Iterator[list[str]]:
    """What is left of texts between runs of ``length`` words that more than ``common`` of them have."""
    different = list({" ".join(words): words for words in texts}.values())
    counts: Counter[str] = Counter()
    for words in different:
        counts.update(set(_runs(words, length)))
    for words in different:
        begin = 0
        for at, run in enumerate(_runs(words, length)):
            if counts[run] > common:
                if at > begin:
                    yield words[begin:at]
                begin = at + length
        yield words[begin:]


def _runs(words: list[str], size: int) -> Iterator[str]:
    return (" ".join(words[at : at + size]) for at in range(len(words) - size + 1))


def texts_in(files: Iterable[Path]) -> Iterator[str]:
    """Every string in the rows of files, such as evaluation sets."""
    return (text for file in files for row in read_rows(file) for text in strings(row.values))


def strings(value: Any) -> Iterator[str]:
    """All texts in a row of an evaluation set, however deep they lie."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))
