"""What is wrong with conversations before anyone trains on them: copies, evaluation sets in them, refusals, debris."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np

from minnow.data.cleaning import Rule, contaminated, copies
from minnow.data.conversations import Conversation
from minnow.data.duplicates import NearCopies
from minnow.errors import UserError
from minnow.loops.cause import debris
from minnow.tasks.scorers.language import language_of

Check = Literal["copies", "near-copies", "contaminated", "refusal", "debris"]
CHECKS: tuple[Check, ...] = ("copies", "near-copies", "contaminated", "refusal", "debris")

NEAR = 0.8
COMMON = 3
"""Evaluation texts that share a run of words by chance; what more of them share is the form of their questions."""

_SHOWN = 5
# How assistants decline, at the beginning of an answer; a task's own way of saying no is none of these.
_REFUSAL = re.compile(
    r"\W*(?:(?:i(?: a|['’])m (?:very |really |so )?sorry|sorry|unfortunately|i apologi[sz]e)\W+(?:but )?)?"
    r"(?:(?:i|we) (?:can(?:no|['’])t|can ?not|am (?:not able|unable) to|won['’]t be able to|must decline|do not feel comfortable)"
    r"|i['’]m (?:not able|unable) to|as an? (?:ai|(?:large )?language model|artificial intelligence))",
    re.IGNORECASE,
)


def held_by(evaluation: Iterable[str]) -> Rule:
    """Texts that share 13 words in a row with one of ``evaluation``, what is the form of these aside."""
    try:
        return contaminated(evaluation, common=COMMON)
    except UserError:  # none is long enough, so none can be told from chance
        return lambda text: False


def check_conversations(rows: Sequence[Conversation], evaluation: Iterable[str] = ()) -> list[set[Check]]:
    """The checks that each row fails.

    ``copies`` and ``near-copies`` are those of an earlier row (words alone, :data:`NEAR` of them in fives);
    ``contaminated`` shares 13 words in a row with an evaluation text (:func:`minnow.data.cleaning.contaminated`);
    ``refusal``: the last answer declines in an assistant's stock words; ``debris``: a mark of a chat template, or a
    character that could not be read, stands in a text.
    """
    leaked = held_by(evaluation)
    copy, near = copies(), NearCopies(NEAR)
    out: list[set[Check]] = []
    for row in rows:
        text, answers = row.text, [each["content"] for each in row.messages if each["role"] == "assistant"]
        failed: set[Check] = set()
        if copy(text):
            failed.add("copies")
        elif near(text):
            failed.add("near-copies")
        if leaked(text):
            failed.add("contaminated")
        if _REFUSAL.match(answers[-1]):
            failed.add("refusal")
        if any(debris(each["content"]) for each in row.messages):
            failed.add("debris")
        out.append(failed)
    return out


def report(rows: Sequence[Conversation], failed: Sequence[set[Check]], lengths: Sequence[int]) -> dict[str, Any]:
    """Counts by check with the first places, lengths in tokens, and languages."""
    spread = np.percentile(lengths, [50, 95, 100]).astype(int).tolist() if len(lengths) else [0, 0, 0]
    found = {check: [row.place for row, each in zip(rows, failed, strict=True) if check in each] for check in CHECKS}
    languages = Counter(language_of(row.text) or "unknown" for row in rows)
    return {
        "rows": len(rows),
        "turns": sum(each["role"] == "assistant" for row in rows for each in row.messages),
        "tokens": dict(zip(("median", "p95", "longest"), spread, strict=True)) | {"total": int(sum(lengths))},
        "languages": dict(languages.most_common()),
        "checks": {check: {"count": len(places), "first": places[:_SHOWN]} for check, places in found.items()},
    }
