"""What to leave out of a corpus before it is tokenised: copies, near copies, and what evaluation sets hold."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from minnow.errors import UserError

Rule = Callable[[str], bool]
"""Whether a text is to be left out, given all that were asked about before."""

FEWEST_WORDS = 8
"""Of an evaluation text; shorter ones are everywhere (GPT-3's lower limit, arXiv 2005.14165, appendix C)."""

_SHINGLE = 5  # words
_WORD = re.compile(r"\w+")


def words_of(text: str) -> list[str]:
    """The words of a text, without case, punctuation or spacing."""
    return _WORD.findall(text.casefold())


def copies() -> Rule:
    """Texts whose words, in order, were all there before."""
    seen: set[bytes] = set()

    def rule(text: str) -> bool:
        digest = hashlib.sha256(" ".join(words_of(text)).encode()).digest()[:16]
        known = digest in seen
        seen.add(digest)
        return known

    return rule


def near_copies(similarity: float, permutations: int = 128) -> Rule:
    """Texts that share about ``similarity`` of their 5-word shingles (Jaccard) with one that was kept: MinHash and LSH.

    Raises:
        UserError: datasketch is not installed, or the similarity is not between 0 and 1.
    """
    if not 0 < similarity < 1:
        raise UserError(f"a similarity of {similarity:g} tells no near copies; use one between 0 and 1, such as 0.8")
    try:
        from datasketch import MinHash, MinHashLSH
    except ImportError as error:
        raise UserError("near copies are found by datasketch; install it with: pip install 'minnow[data]'") from error
    index, kept = MinHashLSH(threshold=similarity, num_perm=permutations), 0

    def rule(text: str) -> bool:
        nonlocal kept
        words = words_of(text)
        shingles = {" ".join(words[at : at + _SHINGLE]) for at in range(max(1, len(words) - _SHINGLE + 1))}
        sketch = MinHash(num_perm=permutations, seed=1)
        sketch.update_batch([shingle.encode() for shingle in shingles])
        if index.query(sketch):
            return True
        index.insert(kept, sketch)
        kept += 1
        return False

    return rule


def contaminated(evaluation: Iterable[str], length: int = 13) -> Rule:
    """Texts that share ``length`` words in a row with an evaluation text, or all words of one that has fewer.

    Raises:
        UserError: ``length`` is below :data:`FEWEST_WORDS`, or no evaluation text has so many words.
    """
    if length < FEWEST_WORDS:
        raise UserError(f"runs of {length} words are everywhere; use at least {FEWEST_WORDS}")
    runs: dict[int, set[str]] = {}
    for text in evaluation:
        words = words_of(text)
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


def _runs(words: list[str], size: int) -> Iterator[str]:
    return (" ".join(words[at : at + size]) for at in range(len(words) - size + 1))


def strings(value: Any) -> Iterator[str]:
    """All texts in a row of an evaluation set, however deep they lie."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        yield from (text for each in value.values() for text in strings(each))
    elif isinstance(value, list):
        yield from (text for each in value for text in strings(each))
