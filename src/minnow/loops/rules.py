"""Published loop rules over text, re-implemented for comparison; Minnow's own verdict is :func:`find_loop`.

They disagree: some need 60 characters, others 20 copies of 30 words, some look anywhere and others only at the end,
and all but few take tables or code for loops. A rate is therefore given together with the rule's name. Where a source
counts model tokens, the rules here count words and punctuation marks, so that they can judge any text.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

WORD = re.compile(r"\w+|[^\w\s]")
SENTENCE = re.compile(r"[^.!?\n]+[.!?\n]?")


@dataclass(frozen=True)
class TextLoop:
    """``onset_character``: where the second copy begins. ``period`` is in characters, ``copies`` counts repeats."""

    onset_character: int
    period: int
    copies: float


def antidoom(text: str) -> TextLoop | None:
    """A span repeated back to back at least 4 times over at least 60 characters, period 1 to 1,024, anywhere.

    Liquid AI, Antidoom (2026), which samples fingerprints and then verifies; here every period is compared in full.
    """
    characters = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    run = _earliest_run(characters, max_period=1024, copies=4, covered=60)
    return None if run is None else TextLoop(run[0], run[1], run[2])


def thirty_gram_x20(text: str) -> TextLoop | None:
    """Some 30-gram occurs at least 20 times in the response (arXiv 2512.12895)."""
    words, starts = _words(text)
    places: dict[Hashable, list[int]] = defaultdict(list)
    for place in range(len(words) - 29):
        places[tuple(words[place : place + 30])].append(place)
    often = next((found for found in places.values() if len(found) >= 20), None)
    if often is None:
        return None
    period = int(np.median(np.diff([starts[place] for place in often])))
    return TextLoop(starts[often[1]], period, float(len(often)))


def period_x_repeats_500(text: str) -> TextLoop | None:
    """A block of k words repeated back to back l times with k · l > 500 ("numerical loop", arXiv 2601.05693)."""
    words, starts = _words(text)
    run = _earliest_run(_numbered(words), max_period=len(words) // 2, copies=2, covered=501)
    return None if run is None else _as_text_loop(starts, run)


def repeated_sentences(text: str) -> TextLoop | None:
    """One sentence more than 3 times in a row ("statement loop", arXiv 2601.05693; in a row as in DITTO, 2206.02369)."""
    sentences = [(match.start(), " ".join(match.group().split())) for match in SENTENCE.finditer(text)]
    sentences = [(start, sentence) for start, sentence in sentences if any(c.isalnum() for c in sentence)]
    run = _earliest_run(_numbered([sentence for _, sentence in sentences]), max_period=1, copies=4, covered=4)
    return None if run is None else _as_text_loop([start for start, _ in sentences], run)


def vllm_tail(text: str, min_pattern_size: int = 1, max_pattern_size: int = 128, min_count: int = 4) -> TextLoop | None:
    """The last words are ``min_count`` copies of a pattern of the given sizes (vLLM's check_sequence_repetition)."""
    words, starts = _words(text)
    symbols = _numbered(words)
    for period in range(min_pattern_size, max_pattern_size + 1):
        matched = (min_count - 1) * period
        if matched + period > symbols.size:
            break
        if np.array_equal(symbols[-matched:], symbols[-matched - period : -period]):
            different = np.flatnonzero(symbols[period:] != symbols[:-period])
            start = int(different[-1]) + 1 if different.size else 0
            return _as_text_loop(starts, (start + period, period, (symbols.size - start) / period))
    return None


def hiraoka(text: str) -> TextLoop | None:
    """The same 10-gram 3 times at equal intervals within 100 words, from the second on (Hiraoka & Inui 2024)."""
    words, starts = _words(text)
    symbols = _numbered(words)
    found: tuple[int, int, float] | None = None
    for period in range(1, 46):
        if symbols.size < 2 * period + 10:
            break
        equal = np.convolve(symbols[period:] == symbols[:-period], np.ones(10, dtype=np.int64), "valid") == 10
        places = np.flatnonzero(equal[:-period] & equal[period:])
        if places.size and (found is None or int(places[0]) + period < found[0]):
            found = int(places[0]) + period, period, 3.0
    return None if found is None else _as_text_loop(starts, found)


def repeated_ngram_share(symbols: Sequence[Hashable], n: int = 4) -> float:
    """seq-rep-n: 1 - distinct n-grams / n-grams, 0 for fewer than n symbols (Welleck et al., arXiv 1908.04319)."""
    grams = [tuple(symbols[place : place + n]) for place in range(len(symbols) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def trl_ngram_penalty(symbols: Sequence[Hashable], n: int = 3, max_penalty: float = -1.0) -> float:
    """TRL's get_repetition_penalty_reward: ``max_penalty`` times the share of repeated n-grams (arXiv 2502.03373)."""
    return max_penalty * repeated_ngram_share(symbols, n)


def _words(text: str) -> tuple[list[str], list[int]]:
    matches = list(WORD.finditer(text))
    return [match.group() for match in matches], [match.start() for match in matches]


def _numbered(symbols: Sequence[Hashable]) -> NDArray[np.int64]:
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(symbol, len(ids)) for symbol in symbols], dtype=np.int64)


def _earliest_run(symbols: NDArray[Any], max_period: int, copies: int, covered: int) -> tuple[int, int, float] | None:
    """(start of the second copy, period, copies) of the earliest run of back-to-back copies, of all periods."""
    best: tuple[int, int, float] | None = None
    for period in range(1, min(max_period, symbols.size // copies) + 1):
        changes = np.flatnonzero(symbols[period:] != symbols[:-period])
        edges = np.concatenate([[-1], changes, [symbols.size - period]])
        lengths = np.diff(edges) - 1
        enough = np.flatnonzero(lengths >= max(copies * period, covered) - period)
        if enough.size:
            start = int(edges[enough[0]]) + 1
            if best is None or start + period < best[0]:
                best = start + period, period, (int(lengths[enough[0]]) + period) / period
    return best


def _as_text_loop(starts: Sequence[int], run: tuple[int, int, float]) -> TextLoop:
    onset, period, copies = run
    return TextLoop(starts[onset], starts[onset] - starts[onset - period], copies)


RULES: dict[str, Callable[[str], TextLoop | None]] = {
    "antidoom": antidoom,
    "30-gram-x20": thirty_gram_x20,
    "period-x-repeats-500": period_x_repeats_500,
    "repeated-sentences": repeated_sentences,
    "vllm-1..128-x4": vllm_tail,
    "vllm-16..1024-x4": partial(vllm_tail, min_pattern_size=16, max_pattern_size=1024),
    "hiraoka": hiraoka,
}
