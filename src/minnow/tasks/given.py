"""Prompts of a user's own, each with its own verifier; open ones, which have no answer, are scored on form."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from minnow.loops import find_text_loop
from minnow.tasks.task import Verifier
from minnow.tasks.types import Example, Score
from minnow.tasks.verifiers import VERIFIERS

_LEAST_WORDS = 16  # an open answer below this is worth less, or a policy learns to say nothing
_RUN = 6


@dataclass(frozen=True)
class Given:
    """What the answer to one prompt is compared with: a key of ``KINDS`` and the expected answer."""

    verifier: str
    answer: Any = None


def regex(answer: Any, text: str) -> Score:
    """The pattern is found somewhere in the text (Python's ``re``)."""
    return Score.of(re.search(answer, text) is not None, f"nothing matches {answer!r}")


def rules(answer: Any, text: str) -> Score:
    """Form alone: not empty, in no loop, hardly repeating itself, and of some length. The content may be anything.

    The value is the share of six-word runs that have not come before, less for a text of under 16 words.
    """
    words = text.split()
    if not words:
        return Score.wrong("says nothing")
    if find_text_loop(text) is not None:
        return Score.wrong("loops")
    runs = [tuple(words[i : i + _RUN]) for i in range(max(1, len(words) - _RUN + 1))]
    value = len(set(runs)) / len(runs) * min(1.0, len(words) / _LEAST_WORDS)
    return Score.of(value >= 0.5, "repeats itself or says next to nothing", value)


KINDS: dict[str, Verifier] = {**VERIFIERS, "regex": regex, "rules": rules}


def verify_given(answer: Given, text: str) -> Score:
    """The word of an answer's own verifier."""
    return KINDS[answer.verifier](answer.answer, text)


def is_open(example: Example) -> bool:
    """Whether nobody knows what the answer is: only its form can be scored, or a jury asked."""
    return isinstance(example.answer, Given) and example.answer.verifier == "rules"


def expected(example: Example) -> Any:
    """The answer that is expected, as its source wrote it."""
    return example.answer.answer if isinstance(example.answer, Given) else example.answer


def verifier_for(answer: Any) -> str:
    """What compares an answer where nobody says: ``number``, ``json``, ``exact``; ``rules`` where there is none."""
    if answer is None:
        return "rules"
    if isinstance(answer, int | float) and not isinstance(answer, bool):
        return "number"
    return "json" if isinstance(answer, dict) else "exact"
