"""Penalties on tokens that would repeat what is there: DRY and the LZ penalty, as pure functions of token ids.

Both say what to take off the logits of which tokens; who draws the tokens does not matter. They are the published
alternatives to acting on a verdict, and need tuning: they also tax legitimate repetition.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from minnow.errors import UserError

Amounts = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Token ids [k], each once, and what is to be taken off their logits [k]."""

_LARGEST = float(np.finfo(np.float32).max)
_LOG_OF_LARGEST = 88.7228391  # as llama.cpp has it


class Penalty(Protocol):
    """What is taken off the logits of the next token."""

    def amounts(self, prompt: NDArray[Any], output: NDArray[Any], vocabulary: int) -> Amounts:
        """Of the token that follows ``prompt`` and ``output`` ([n] ids each), out of ``vocabulary`` ids."""
        ...


@dataclass(frozen=True)
class Dry:
    """DRY ("don't repeat yourself", p-e-w, text-generation-webui #5677), with llama.cpp's semantics.

    A token that would continue a repetition of the last ``m`` tokens loses ``multiplier * base ** (m -
    allowed_length)``, for the longest such ``m``, if that is ``allowed_length`` or more. Prompt and output count alike.

    Attributes:
        last_n: look at so many of the last tokens; None: at all.
        breakers: token sequences across which nothing is a repetition; one of a single token is never penalised
            (:func:`breaker_tokens`).

    Raises:
        UserError: a number that means nothing.
    """

    multiplier: float = 0.8
    base: float = 1.75
    allowed_length: int = 2
    last_n: int | None = None
    breakers: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        if (
            self.multiplier < 0
            or self.base < 1
            or self.allowed_length < 1
            or (self.last_n is not None and self.last_n < 1)
        ):
            raise UserError(
                f"DRY with multiplier {self.multiplier}, base {self.base}, allowed_length {self.allowed_length} and "
                f"last_n {self.last_n} means nothing; use a multiplier of at least 0, a base of at least 1, and lengths "
                "of at least 1"
            )
        if not all(self.breakers):
            raise UserError("a sequence breaker of DRY is empty; name at least one token in each")

    def amounts(self, prompt: NDArray[Any], output: NDArray[Any], vocabulary: int) -> Amounts:
        tokens = np.concatenate([prompt, output])[-(self.last_n or 0) :]
        limit = self._unbroken(tokens)
        if tokens.size <= self.allowed_length or limit < self.allowed_length:
            return _NOTHING
        # Beyond the largest exponent a longer match makes no difference.
        most = int(_LOG_OF_LARGEST / math.log(self.base)) if self.base > 1.000001 else limit
        lengths = suffix_matches(tokens, min(limit, self.allowed_length + most))
        places = np.flatnonzero(lengths >= self.allowed_length)
        ids, longest = _greatest(tokens[places + 1], lengths[places])
        kept = ~self._single[np.minimum(ids, self._single.size - 1)]
        exponents = longest[kept] - self.allowed_length
        taken = np.minimum(self.multiplier * self.base ** exponents.astype(np.float64), _LARGEST)
        return ids[kept], taken.astype(np.float32)

    def _unbroken(self, tokens: NDArray[Any]) -> int:
        """How many tokens a match may have before it would reach into the latest breaker."""
        nearest, longest = tokens.size, 0
        single = np.flatnonzero(self._single[np.minimum(tokens, self._single.size - 1)])
        if single.size:
            nearest, longest = tokens.size - 1 - int(single[-1]), 0
        for breaker in self._long:
            found, tail = occurrences(tokens, breaker), len(breaker) - 1
            back = tokens.size - 1 - int(found[-1]) if found.size else tokens.size
            # As in llama.cpp, the one that begins nearest counts, and the longest of those.
            if back < nearest or (back == nearest < tokens.size and tail > longest):
                nearest, longest = back, tail
        return nearest - longest

    @cached_property
    def _long(self) -> list[Sequence[int]]:
        return [breaker for breaker in self.breakers if len(breaker) > 1]

    @cached_property
    def _single(self) -> NDArray[np.bool_]:
        """Which ids break a sequence alone; the last entry stands for all beyond."""
        ids = [breaker[0] for breaker in self.breakers if len(breaker) == 1]
        table = np.zeros(max(ids, default=-1) + 2, np.bool_)
        table[ids] = True
        return table


@dataclass(frozen=True)
class LzPenalty:
    """The LZ penalty (Ginart et al., arXiv 2504.20131) as its authors' SGLang fork computes it.

    What a token costs in a Lempel-Ziv sliding window code, beside the ``log2(vocabulary)`` bits of an unseen one: of the
    places in the window where it stands, that behind the longest match with the last tokens, and of those the nearest,
    at ``log2(distance)`` bits. The penalty is ``strength`` times the bits saved. Only the output counts.

    Attributes:
        window: tokens looked back over.
        buffer: the longest match; nothing is penalised before there are more tokens than this.

    Raises:
        UserError: a number that means nothing.
    """

    strength: float = 0.15
    window: int = 512
    buffer: int = 32

    def __post_init__(self) -> None:
        if self.strength < 0 or not 1 <= self.buffer < self.window:
            raise UserError(
                f"an LZ penalty of strength {self.strength} with a buffer of {self.buffer} and a window of "
                f"{self.window} means nothing; use a strength of at least 0 and a window longer than the buffer"
            )

    def amounts(self, prompt: NDArray[Any], output: NDArray[Any], vocabulary: int) -> Amounts:
        tokens = output[-self.window :]
        if tokens.size <= self.buffer:
            return _NOTHING
        lengths = suffix_matches(tokens, self.buffer)[self.buffer - 1 :]
        following = np.arange(self.buffer, tokens.size)
        ids, best = _greatest(tokens[self.buffer :], lengths * tokens.size + following)
        bits = np.log2(tokens.size - best % tokens.size)
        return ids, (self.strength * np.clip(math.log2(vocabulary) - bits, 0.0, None)).astype(np.float32)


_NOTHING: Amounts = np.zeros(0, np.int64), np.zeros(0, np.float32)


def suffix_matches(tokens: NDArray[Any], most: int) -> NDArray[np.int64]:
    """How far what ends at each place, the last one excepted, is what ``tokens`` end in: [n - 1] lengths to ``most``."""
    lengths = np.zeros(max(0, tokens.size - 1), np.int64)
    most = min(most, lengths.size)
    if most < 1:
        return lengths
    places, length = np.flatnonzero(tokens[:-1] == tokens[-1]), 1
    lengths[places] = 1
    padded = np.concatenate([np.full(most, -1), tokens])
    while places.size and length < most:
        # Twice as many tokens at a time: what repeats for long is seen in a few rounds.
        width = min(length, most - length)
        back = np.arange(length, length + width)
        same = padded[places[:, None] + (most - back)] == tokens[-1 - back]
        run = np.where(same.all(1), width, same.argmin(1))
        lengths[places] += run
        places = places[run == width]
        length += width
    return lengths


def occurrences(tokens: NDArray[Any], wanted: Sequence[int]) -> NDArray[np.int64]:
    """The places [k] at which the sequence ``wanted`` begins in ``tokens``."""
    places = np.arange(max(0, tokens.size - len(wanted) + 1))
    for offset, token in enumerate(wanted):
        places = places[tokens[places + offset] == token]
    return places


def breaker_tokens(pieces: Iterable[str], marks: str = '\n:"*') -> list[tuple[int]]:
    """Breakers for :class:`Dry`: every id whose text, ``pieces[id]``, holds one of ``marks`` (llama.cpp's by default)."""
    return [(token,) for token, piece in enumerate(pieces) if any(mark in piece for mark in marks)]


def _greatest(ids: NDArray[Any], values: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each of ``ids`` once, and the greatest of its values."""
    order = np.lexsort((values, ids))
    ids, values = ids[order].astype(np.int64), values[order]
    last = np.append(ids[1:] != ids[:-1], True)[: ids.size]
    return ids[last], values[last]
