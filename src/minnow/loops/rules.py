"""Published loop rules, re-implemented for comparison; Minnow's own verdict is :mod:`minnow.loops.find`.

They disagree: some need 60 characters, others 20 copies of 30 words, some look anywhere and others only at the end,
and all but few take tables or code for loops. A rate is therefore given together with the rule's name.

Every rule reads text or token ids. Where a source counts model tokens, text is read as words and punctuation marks;
where it counts characters, token ids are counted instead. ``RULES[name](output)`` is the verdict on a whole output,
``rule_watch(name)`` the same while it is generated.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from minnow.loops.streams import (
    WORD,
    EarliestRun,
    Hiraoka,
    Novelty,
    RepeatedShare,
    RuleWatch,
    Sentences,
    Stream,
    TextLoop,
    ThirtyGrams,
    VllmTail,
    as_text_loop,
)

Output = str | Sequence[int] | NDArray[Any]

LONGEST_PERIOD = 2048
"""Words of the longest block that ``period-x-repeats-500`` tries; the source names no limit."""


def antidoom(output: Output) -> TextLoop | None:
    """A span repeated back to back at least 4 times over at least 60 characters, period 1 to 1,024, anywhere.

    Liquid AI, Antidoom (2026), which samples fingerprints and then verifies; here every period is compared in full.
    """
    run = _earliest_run(_characters(output), max_period=1024, copies=4, covered=60)
    return None if run is None else TextLoop(run[0], run[1], run[2])


def thirty_gram_x20(output: Output) -> TextLoop | None:
    """Some 30-gram occurs at least 20 times in the response (arXiv 2512.12895)."""
    return _through(ThirtyGrams(), output)


def period_x_repeats_500(output: Output) -> TextLoop | None:
    """A block of k words repeated back to back l times with k · l > 500 ("numerical loop", arXiv 2601.05693)."""
    symbols, starts = _words(output)
    run = _earliest_run(_numbered(symbols), max_period=LONGEST_PERIOD, copies=2, covered=501)
    return None if run is None else as_text_loop(starts, run)


def repeated_sentences(text: Output) -> TextLoop | None:
    """One sentence more than 3 times in a row ("statement loop", arXiv 2601.05693; in a row as in DITTO, 2206.02369).

    Raises:
        ValueError: token ids, which do not say where a sentence ends.
    """
    return _through(Sentences(), text)


def vllm_tail(
    output: Output, min_pattern_size: int = 1, max_pattern_size: int = 128, min_count: int = 4
) -> TextLoop | None:
    """The last words are ``min_count`` copies of a pattern of the given sizes (vLLM's check_sequence_repetition)."""
    words, starts = _words(output)
    symbols = _numbered(words)
    for period in range(min_pattern_size, max_pattern_size + 1):
        matched = (min_count - 1) * period
        if matched + period > symbols.size:
            break
        if np.array_equal(symbols[-matched:], symbols[-matched - period : -period]):
            different = np.flatnonzero(symbols[period:] != symbols[:-period])
            start = int(different[-1]) + 1 if different.size else 0
            return as_text_loop(starts, (start + period, period, (symbols.size - start) / period))
    return None


def hiraoka(output: Output) -> TextLoop | None:
    """The same 10-gram 3 times at equal intervals within 100 words, from the second on (Hiraoka & Inui 2024)."""
    words, starts = _words(output)
    symbols = _numbered(words)
    found: tuple[int, int, float] | None = None
    for period in range(1, 46):
        if symbols.size < 2 * period + 10:
            break
        equal = np.convolve(symbols[period:] == symbols[:-period], np.ones(10, dtype=np.int64), "valid") == 10
        places = np.flatnonzero(equal[:-period] & equal[period:])
        if places.size and (found is None or int(places[0]) + period < found[0]):
            found = int(places[0]) + period, period, 3.0
    return None if found is None else as_text_loop(starts, found)


def seq_rep_4(output: Output) -> TextLoop | None:
    """More than half of the 4-grams are repeats (seq-rep-4, arXiv 1908.04319; the threshold is ours)."""
    return _through(RepeatedShare(4), output)


def trl_reward(output: Output) -> TextLoop | None:
    """More than half of the 3-grams are repeats: TRL's repetition reward below -0.5 (the threshold is ours)."""
    return _through(RepeatedShare(3), output)


def novelty_8_gram(output: Output) -> TextLoop | None:
    """Fewer than 2% of the word 8-grams of 4,000 characters are new, from some such window to the end (DSpark)."""
    return _through(Novelty(), output)


def repeated_ngram_share(symbols: Sequence[Hashable], n: int = 4) -> float:
    """seq-rep-n: 1 - distinct n-grams / n-grams, 0 for fewer than n symbols (Welleck et al., arXiv 1908.04319)."""
    grams = [tuple(symbols[place : place + n]) for place in range(len(symbols) - n + 1)]
    return 1.0 - len(set(grams)) / len(grams) if grams else 0.0


def trl_ngram_penalty(symbols: Sequence[Hashable], n: int = 3, max_penalty: float = -1.0) -> float:
    """TRL's get_repetition_penalty_reward: ``max_penalty`` times the share of repeated n-grams (arXiv 2502.03373)."""
    return max_penalty * repeated_ngram_share(symbols, n)


def _characters(output: Output) -> NDArray[Any]:
    if isinstance(output, str):
        return np.frombuffer(output.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)
    return np.asarray(output, dtype=np.int64)


def _words(output: Output) -> tuple[list[Hashable], Sequence[int]]:
    if isinstance(output, str):
        matches = list(WORD.finditer(output))
        return [match.group() for match in matches], [match.start() for match in matches]
    return np.asarray(output, dtype=np.int64).tolist(), range(len(output))


def _numbered(symbols: Sequence[Hashable]) -> NDArray[np.int64]:
    ids: dict[Hashable, int] = {}
    return np.array([ids.setdefault(symbol, len(ids)) for symbol in symbols], dtype=np.int64)


def _earliest_run(symbols: NDArray[Any], max_period: int, copies: int, covered: int) -> tuple[int, int, float] | None:
    """(start of the second copy, period, copies) of the earliest run of back-to-back copies, of all periods."""
    best: tuple[int, int, float] | None = None
    for period in range(1, min(max_period, symbols.size // copies) + 1):
        needed = max(copies * period, covered) - period
        changes = np.flatnonzero(symbols[period:] != symbols[:-period])
        edges = np.concatenate([[-1], changes, [symbols.size - period]])
        lengths = np.diff(edges) - 1
        enough = np.flatnonzero(lengths >= needed)
        if enough.size:
            start = int(edges[enough[0]]) + 1
            if best is None or start + period < best[0]:
                best = start + period, period, (int(lengths[enough[0]]) + period) / period
    return best


def _through(stream: Stream, output: Output) -> TextLoop | None:
    watch = RuleWatch(stream)
    watch.push(output) if isinstance(output, str) else watch.push(np.asarray(output, dtype=np.int64).tolist())
    return watch.finish()


RULES: dict[str, Callable[[Output], TextLoop | None]] = {
    "antidoom": antidoom,
    "30-gram-x20": thirty_gram_x20,
    "period-x-repeats-500": period_x_repeats_500,
    "repeated-sentences": repeated_sentences,
    "vllm-1..128-x4": vllm_tail,
    "vllm-16..1024-x4": partial(vllm_tail, min_pattern_size=16, max_pattern_size=1024),
    "hiraoka": hiraoka,
    "seq-rep-4": seq_rep_4,
    "trl-3-gram": trl_reward,
    "8-gram-novelty": novelty_8_gram,
}

_STREAMS: dict[str, Callable[[], Stream]] = {
    "antidoom": lambda: EarliestRun("characters", 1024, copies=4, covered=60),
    "30-gram-x20": ThirtyGrams,
    "period-x-repeats-500": lambda: EarliestRun("words", LONGEST_PERIOD, copies=2, covered=501),
    "repeated-sentences": Sentences,
    "vllm-1..128-x4": lambda: VllmTail(1, 128, 4),
    "vllm-16..1024-x4": lambda: VllmTail(16, 1024, 4),
    "hiraoka": Hiraoka,
    "seq-rep-4": lambda: RepeatedShare(4),
    "trl-3-gram": lambda: RepeatedShare(3),
    "8-gram-novelty": Novelty,
}


def rule_watch(name: str) -> RuleWatch:
    """A published rule (a key of ``RULES``) over an output that is being generated."""
    return RuleWatch(_STREAMS[name]())
